import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_mn.networks.geometry import SHORTEST_SIDE, VOXELS_PER_CELL, Geometry, crop_slices, pad_slices

SIZES = st.integers(min_value=1, max_value=600)
GEOMETRIES = st.sampled_from(
    [Geometry(stride=s, block=b) for s, b in [(4, 4), (14, 14), (16, 16), (2, 16), (4, 16), (32, 32), (1, 1)]]
)


@given(GEOMETRIES, SIZES, SIZES)
def test_every_slice_reaches_the_backbone_in_blocks_and_detail_enough(
    geometry: Geometry, height: int, width: int
) -> None:
    padded, pixels = geometry.sizes(height, width)
    assert padded[0] >= height
    assert padded[1] >= width
    assert pixels[0] % geometry.block == 0
    assert pixels[1] % geometry.block == 0
    assert min(pixels) >= SHORTEST_SIDE
    factor = pixels[0] / padded[0]
    assert factor >= 1
    assert geometry.stride / factor <= VOXELS_PER_CELL  # voxels a side per cell of the finest map


@given(GEOMETRIES, SIZES, SIZES)
def test_both_sides_are_enlarged_by_the_same_exact_factor(geometry: Geometry, height: int, width: int) -> None:
    padded, pixels = geometry.sizes(height, width)
    assert pixels[0] * padded[1] == pixels[1] * padded[0]


@given(GEOMETRIES, SIZES, SIZES)
def test_less_than_one_block_is_padded(geometry: Geometry, height: int, width: int) -> None:
    padded, pixels = geometry.sizes(height, width)
    for size, padded_size, pixel_size in zip((height, width), padded, pixels, strict=True):
        assert (padded_size - size) * pixel_size / padded_size < max(geometry.block, pixel_size / padded_size)


def test_small_slices_are_enlarged_and_large_ones_seen_as_they_are() -> None:
    geometry = Geometry(stride=4, block=4)
    assert geometry.sizes(40, 56) == ((40, 56), (80, 112))
    assert geometry.sizes(512, 512) == ((512, 512), (512, 512))


def test_square_and_fixed_inputs() -> None:
    (rows, columns), pixels = Geometry(stride=2, block=16, shape="square").sizes(40, 56)
    assert rows == columns >= 56
    assert pixels[0] == pixels[1]
    assert Geometry(stride=4, block=16, shape=640).sizes(40, 56) == ((40, 56), (640, 640))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 20), st.integers(0, 20))
def test_cropping_undoes_padding(height: int, width: int, bottom: int, right: int) -> None:
    slices = torch.rand(2, 3, height, width)
    padded = pad_slices(slices, size=(height + bottom, width + right))
    assert padded.shape[-2:] == (height + bottom, width + right)
    assert torch.equal(crop_slices(padded, size=(height, width)), slices)


@pytest.mark.parametrize("size", [(5, 4), (9, 11)])
def test_padding_repeats_the_border(size: tuple[int, int]) -> None:
    padded = pad_slices(torch.arange(20.0).view(1, 1, 5, 4), size=size)
    assert torch.all(padded[..., 4:, 3:] == 19)
