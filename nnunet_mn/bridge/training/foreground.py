"""Foreground locations of unlabeled cases, from the 3D network's own pseudo-masks: crops are centered on them.

Stock forces a third of the crops to show foreground. It knows the foreground from labels. An unlabeled case has no
label: if its foreground is rare, nearly all of its crops would be background. Only sampled voxel locations are kept.
"""

import itertools
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunet_mn.bridge.cases.preprocessed import Cases, reading
from nnunet_mn.bridge.training.locations import ForegroundLocations
from nnunet_mn.bridge.training.stored_masks import StoredMasks
from nnunet_mn.bridge.training.whole_images import sliding_window
from nnunet_mn.bridge.words import name_some
from nnunet_mn.ranks import ALONE, Ranks
from nnunet_mn.schedule import REFRESHES

MOST_LOCATIONS = 500  # of a class in a case
FEWEST_CASES, MOST_CASES = 8, 500  # predicted at one refresh, drawn anew each time
TIME_SHARE = 0.02  # of a training, for all its refreshes
# An iteration costs this many forward passes of a patch for each sample: forward and backward of both networks.
PASSES_PER_SAMPLE = 6


def refresh(
    locations: ForegroundLocations,
    cases: Cases,
    predict: Callable[[Tensor], Tensor],
    *,
    position: int,
    regions: bool,
    seed: int,
    stop: Callable[[], object],
    most_cases: int = MOST_CASES,
    ranks: Ranks = ALONE,
) -> str:
    """Predict unlabeled cases and keep their foreground locations.

    It has its own generators: only the crops of a training depend on it.

    Args:
        locations: keeps what was found, in a file.
        cases: preprocessed unlabeled cases.
        predict: image `(C, Z, Y, X)` -> logits `(K, Z, Y, X)`.
        position: iterations done.
        regions: channels are regions rather than classes.
        seed: of the draws, the same on every rank.
        stop: asked between cases. If any rank's says yes, nothing changes.
        most_cases: cases to predict; of more, a random choice.
        ranks: they share the cases, and wait for each other after each case.

    Returns:
        A line for the log.

    Raises:
        MNError: if a case cannot be read, or the file cannot be written.
    """
    start, rng = time.monotonic(), np.random.default_rng([seed, position])
    names = sorted(cases.identifiers)
    if len(names) > most_cases:
        names = sorted(rng.choice(names, most_cases, replace=False).tolist())
    located: dict[str, list[np.ndarray]] = {}
    failed: list[str] = []
    for own_names in ranks.rounds(names):
        if ranks.any(bool(stop())):
            return "M&N: the search for foreground in unlabeled cases was given up, since the training is to stop"
        for name in own_names:
            with reading(cases, name):
                image = torch.from_numpy(np.asarray(cases.load_case(name)[0][:], dtype=np.float32))
            own = _generator(name, seed, position)
            try:
                logits = predict(image)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:  # stock predicts in fp16, where confident logits may overflow
                failed.append(f"'{name}' ({error})")
                continue
            located[name] = [_sample(voxels, logits.shape[1:], own) for voxels in _foreground(logits, regions=regions)]
    located = _hand_out(locations, located, position, ranks)
    empty = sum(not any(len(voxels) for voxels in all_) for all_ in located.values())
    none = f"; none was found in {empty} of them, whose crops stay random" if empty else ""
    problem = f". WARNING: {len(failed)} could not be predicted: {name_some(failed)}" if failed else ""
    return (
        f"M&N: looked for foreground in {len(located)} of {len(cases.identifiers)} unlabeled cases "
        f"({time.monotonic() - start:.1f} s){none}{problem}"
    )


def take_from_masks(
    locations: ForegroundLocations, cases: Cases, masks: StoredMasks, *, position: int, seed: int, ranks: Ranks = ALONE
) -> str:
    """Keep the foreground locations of stored masks. Nothing is predicted.

    Args:
        locations: keeps what was found, in a file.
        cases: preprocessed unlabeled cases; each has a mask.
        masks: of the cases.
        position: iterations done.
        seed: of the draws.
        ranks: they share the cases, and wait for each other after each case. (NCCL gives up after 10 minutes.)

    Returns:
        A line for the log.

    Raises:
        MNError: if a mask cannot be read, or the file cannot be written.
    """
    located: dict[str, list[np.ndarray]] = {}
    for own_names in ranks.rounds(sorted(cases.identifiers)):
        ranks.wait()
        for name in own_names:
            (mask,) = masks.of(name)[:]
            own = _generator(name, seed, position)
            located[name] = [_sample(np.flatnonzero(np.isin(mask, key)), mask.shape, own) for key in locations.keys]
    _hand_out(locations, located, position, ranks)
    return f"M&N: foreground of {len(cases.identifiers)} unlabeled cases taken from the teacher's masks"


def affordable_cases(cases: Cases, *, patch_size: Sequence[int], iterations: int, batch_size: int) -> int:
    """The number of cases at one refresh with which all refreshes take 2 % of the training.

    It counts windows of nnU-Net's sliding window, and is the same in every run.

    Args:
        cases: the first of them stand for all.
        patch_size: voxels.
        iterations: of the training.
        batch_size: samples of an iteration.
    """
    shapes = []
    for name in sorted(cases.identifiers)[:FEWEST_CASES]:
        with reading(cases, name):
            shapes.append(cases.load_case(name)[0].shape[1:])
    steps = np.ceil(2 * (np.asarray(shapes) / np.asarray(patch_size) - 1)).clip(0) + 1  # by half a patch
    windows = TIME_SHARE / REFRESHES * iterations * batch_size * PASSES_PER_SAMPLE
    return int(np.clip(windows / steps.prod(1).mean(), FEWEST_CASES, MOST_CASES))


def refresh_from_trainer(trainer: Any, locations: ForegroundLocations, cases: Cases, *, position: int) -> None:
    """Refresh with the network that the trainer names, and leave it as it was."""
    network: nn.Module = trainer.foreground_network()
    was_training = network.training
    trainer.set_deep_supervision_enabled(False)
    try:
        line = refresh(
            locations,
            cases,
            sliding_window(trainer, network),
            position=position,
            regions=trainer.label_manager.has_regions,
            seed=trainer.mn_config.seed or 0,
            stop=trainer.stopping.is_ending,
            most_cases=affordable_cases(
                cases,
                patch_size=trainer.configuration_manager.patch_size,
                iterations=trainer.schedule.total,
                batch_size=trainer.unlabeled_counts.batch_size,
            ),
            ranks=trainer.ranks,
        )
    finally:
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        network.train(was_training)
    trainer.print_to_log_file(line)


def location_keys(labels: LabelManager) -> list[Any]:
    """nnU-Net's keys of `class_locations` in the order of the network's foreground channels."""
    return list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)


def _hand_out(
    locations: ForegroundLocations, located: Mapping[str, list[np.ndarray]], position: int, ranks: Ranks
) -> dict[str, list[np.ndarray]]:
    """The first rank writes what all ranks have located, and all use it. Returns the locations of all ranks."""
    located = {name: voxels for part in ranks.gather(located) for name, voxels in part.items()}
    if ranks.own == 0:
        locations.write(position, located)
    ranks.wait()  # the file is there
    locations.use(position)
    return located


def _generator(case: str, seed: int, position: int) -> np.random.Generator:
    """A case's own draws: they do not depend on the other cases."""
    return np.random.default_rng([seed, position, zlib.crc32(case.encode())])


def _foreground(logits: Tensor, *, regions: bool) -> list[np.ndarray]:
    """The flat indices of every foreground channel's voxels, of logits `(K, Z, Y, X)`."""
    if regions:
        return [np.flatnonzero(mask) for mask in (logits > 0).cpu().numpy()]  # a probability above one half
    labels = logits.argmax(0).cpu().numpy().astype(np.uint8 if len(logits) <= 256 else np.int32).ravel()
    voxels = np.flatnonzero(labels)
    order = np.argsort(labels[voxels], kind="stable")
    first = np.searchsorted(labels[voxels[order]], range(1, len(logits) + 1))
    return [voxels[order[a:b]] for a, b in itertools.pairwise(first)]


def _sample(voxels: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """At most `MOST_LOCATIONS` of some voxels, `(n, 3)`, from their flat indices in a volume of a shape."""
    if len(voxels) > MOST_LOCATIONS:
        voxels = np.sort(rng.choice(voxels, MOST_LOCATIONS, replace=False))
    return np.stack(np.unravel_index(voxels, tuple(shape)), axis=1).astype(np.int32)
