import pytest
import torch

from nnunet_mn import strong_view as module
from nnunet_mn.strong_view import StrongView


def _volumes() -> torch.Tensor:
    return torch.randn(6, 2, 8, 10, 12, generator=torch.Generator().manual_seed(0))


def test_the_view_has_the_same_shape_and_other_intensities() -> None:
    volumes = _volumes()
    kept = volumes.clone()
    changed = StrongView()(volumes)
    assert changed.shape == volumes.shape
    assert torch.equal(volumes, kept)
    assert (changed - volumes).flatten(2).abs().mean(2).count_nonzero() > 6


def test_it_fits_any_normalization() -> None:
    plain = StrongView()(_volumes())  # a new generator has a fixed seed
    scaled = StrongView()(1000 * _volumes() + 50)
    torch.testing.assert_close(scaled, 1000 * plain + 50, rtol=1e-3, atol=0.1)


def test_a_constant_channel_stays_as_it_is() -> None:
    torch.testing.assert_close(StrongView()(torch.full((3, 1, 4, 4, 4), 7.0)), torch.full((3, 1, 4, 4, 4), 7.0))


def test_channels_and_samples_have_draws_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANCES", dict.fromkeys(module.CHANCES, 1.0))
    one = _volumes()[:1, :1]
    changed = StrongView()(one.expand(3, 2, -1, -1, -1).contiguous()).mean((2, 3, 4)).flatten()
    assert len(set(changed.tolist())) == 6


def test_without_any_chance_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANCES", dict.fromkeys(module.CHANCES, 0.0))
    torch.testing.assert_close(StrongView()(_volumes()), _volumes())


def test_a_flat_volume_is_taken() -> None:
    assert StrongView()(torch.randn(2, 1, 1, 16, 16)).isfinite().all()


def test_each_call_draws_anew_and_the_generator_alone_decides() -> None:
    view, again = StrongView(), StrongView()
    first, second = view(_volumes()), view(_volumes())
    assert not torch.equal(first, second)
    assert torch.equal(first, again(_volumes()))
    assert torch.equal(second, again(_volumes()))
