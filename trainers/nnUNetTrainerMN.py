"""nnU-Net trainers that co-train a pretrained 2D network with nnU-Net's 3D network.

All classes live in this one file. nnU-Net imports the files of `nnUNet_extTrainer` as top-level modules and forgets
them afterwards: a class would get a second copy of a base from another file there.
"""

import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw, nnUNet_results
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.benchmarking.nnUNetTrainerBenchmark_5epochs import (
    nnUNetTrainerBenchmark_5epochs,
)
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_mn.bridge import reading
from nnunet_mn.bridge.cases.dataset import DatasetFolders
from nnunet_mn.bridge.cases.planned import PlannedDataset, planned_configuration
from nnunet_mn.bridge.cases.preprocessed import Cases, dataset_class_of
from nnunet_mn.bridge.cases.roles import roles_in_training, roles_of_fold
from nnunet_mn.bridge.cases.splits import read_splits
from nnunet_mn.bridge.files import refusals_told
from nnunet_mn.bridge.last_word import WorkerFailures, last_word
from nnunet_mn.bridge.model_folders import FINAL, LATEST, ModelFolders
from nnunet_mn.bridge.planning.checks import check_co_trainable, check_split_is_preprocessed
from nnunet_mn.bridge.preprocessing.run import prepare_unlabeled
from nnunet_mn.bridge.trained_with import check_means_the_same, meaning
from nnunet_mn.bridge.training import (
    assembly,
    checkpoint,
    ddp,
    foreground,
    loader,
    locations,
    owner,
    skips,
    state,
    teacher_model,
    workers,
)
from nnunet_mn.bridge.training.join import join, joined_plans
from nnunet_mn.bridge.training.joint_plans import TrainedPlans
from nnunet_mn.bridge.training.stopping import Stopping
from nnunet_mn.bridge.training.stored_masks import StoredMasks, store, to_labels
from nnunet_mn.bridge.training.whole_images import sliding_window
from nnunet_mn.bridge.versions import check_nnunet_version
from nnunet_mn.bridge.words import name_some
from nnunet_mn.config import Layer, environment_layer, resolve
from nnunet_mn.cotraining import CoTrainer, Student
from nnunet_mn.device import check_device, check_is_card, compile_anew, fused, prepare_torch, without_search
from nnunet_mn.errors import MNError
from nnunet_mn.metrics import Counts, count, dice_per_class
from nnunet_mn.networks import Network2D
from nnunet_mn.networks.adapter import Intensities
from nnunet_mn.report.progress import plot_progress
from nnunet_mn.schedule import (
    DistillationSchedule,
    EpochStartRates,
    HalfUnlabeled,
    Schedule,
    UnlabeledCounts,
    default_unlabeled_weight,
    scale_learning_rates,
)
from nnunet_mn.teaching import same_in_eval

LOGGED_2D = ("train_losses_2d", "val_losses_2d", "mean_fg_dice_2d", "dice_per_class_or_region_2d", "lrs_2d")
LR_3D_ADAMW = 1e-3
WEIGHT_DECAY_ADAMW = 0.01  # AdamW's default
NEVER = 2**62  # epochs between two checkpoints of stock


def _refuse_seen(labeled: list[str], val: list[str], seen: Collection[str], *, when: str, remedy: str) -> None:
    """Raise an MNError if validation cases were trained on. With few labels the labeled cases are both."""
    if leaked := sorted((set(val) - set(labeled)).intersection(seen)):
        raise MNError(
            f"{len(leaked)} validation case(s) ({name_some(leaked)}) were trained on {when}: put that training's split "
            f"back{remedy}"
        )


class _ConfiguredTrainer(nnUNetTrainer):
    """The stock trainer with the lengths and the seed of `MNConfig`, on the labeled cases alone."""

    initial_lr: float
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    current_epoch: int
    variant: ClassVar[dict[str, Any]] = {}  # settings of a class, over those of its bases and under the plans'
    other_optimizer: Sequence[str] = ()  # why a training cannot go on with the optimizer of the loaded checkpoint

    @last_word
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  the base class introspects this very signature
    ) -> None:
        check_nnunet_version()
        check_device(device)
        planned = planned_configuration(plans, configuration)
        self.mn_config = resolve(
            Layer(f"the trainer {type(self).__name__}", self._merged_variants()),
            Layer(f"'mn' in the plans' configuration {configuration}", planned.configuration.get("mn", {})),
            environment_layer(),
        )
        self.check_plans(configuration, planned)
        if device.type == "cpu":
            prepare_torch()
        with refusals_told():
            super().__init__(plans, configuration, fold, dataset_json, device)
        if self.mn_config.optimizer_3d == "adamw":
            self.initial_lr, self.weight_decay = LR_3D_ADAMW, WEIGHT_DECAY_ADAMW
        self.initial_lr = self.mn_config.lr_3d or self.initial_lr
        if self.mn_config.foreground_share is not None:
            self.oversample_foreground_percent = self.mn_config.foreground_share
        self.num_epochs = self.mn_config.epochs or self.num_epochs
        self.num_iterations_per_epoch = self.mn_config.iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.mn_config.val_iterations_per_epoch or self.num_val_iterations_per_epoch
        self.save_every = self.mn_config.checkpoint_every

    @classmethod
    def _merged_variants(cls) -> dict[str, Any]:
        """The `variant` of this class over those of its bases."""
        return {name: value for one in reversed(cls.__mro__) for name, value in vars(one).get("variant", {}).items()}

    def check_plans(self, configuration: str, planned: Any) -> None:
        """Raise an MNError if this trainer cannot train the configuration of the plans."""

    @last_word
    def initialize(self) -> None:
        if not self.was_initialized:
            reading.check_pretrained(sys.argv[1:], trust=self.mn_config.trust_checkpoints)
            checkpoint.seed_all(ddp.own_seed(self.mn_config.seed, self.local_rank))
            compile_anew()  # nnU-Net compiles the 3D network below
        dataset_class_of(Path(self.preprocessed_dataset_folder))  # before stock's bare assertion
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        if self.mn_config.optimizer_3d == "sgd":
            optimizer, scheduler = super().configure_optimizers()
            return optimizer, scheduler
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay, fused=fused(self.device)
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    @last_word
    def do_split(self) -> tuple[list[str], list[str]]:
        planned = self._planned_dataset()
        splits, warnings = read_splits(planned.folders.preprocessed, planned.folders.raw)
        folder = planned.cases.labeled
        preprocessed = dataset_class_of(folder).get_identifiers(str(folder))
        roles = roles_in_training(splits, self.fold, preprocessed, super().do_split)
        check_split_is_preprocessed((*roles.labeled, *roles.val), preprocessed, folder)
        for warning in (*warnings, *roles.warnings):
            self.print_to_log_file(warning)
        return list(roles.labeled), list(roles.val)

    @last_word
    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Load a checkpoint, or the content of one. Unlike with stock's method, a file cannot run code."""
        content, file = self._read_checkpoint(filename_or_checkpoint)
        if not self.was_initialized:
            self.initialize()
        self.other_optimizer = state.other_optimizer(content.get("optimizer_state"), self.optimizer)
        if self.other_optimizer:  # torch cannot load it, and a validation alone needs none
            content = {**content, "optimizer_state": self.optimizer.state_dict()}
        state.keep_own_options(content.get("optimizer_state"), self.optimizer)
        with reading.handed_over(content):
            super().load_checkpoint(str(file))

    def _read_checkpoint(self, filename_or_checkpoint: Any) -> tuple[dict[str, Any], Path]:
        """The content of a checkpoint, and its file for messages."""
        if isinstance(filename_or_checkpoint, dict):
            return filename_or_checkpoint, Path("the checkpoint")
        file = Path(filename_or_checkpoint)
        if not file.exists():
            raise MNError(f"there is no checkpoint {file}: train this fold first, or leave --val_best out")
        return reading.read(file, trust=self.mn_config.trust_checkpoints), file

    @refusals_told()
    def _planned_dataset(self) -> PlannedDataset:
        name = self.plans_manager.dataset_name
        raw = Path(nnUNet_raw) / name if nnUNet_raw and (Path(nnUNet_raw) / name).is_dir() else None
        folders = DatasetFolders(name, raw, Path(self.preprocessed_dataset_folder_base))
        return PlannedDataset(
            folders, self.plans_manager, self.configuration_name, self.configuration_manager, self.dataset_json
        )


class _WithoutCascade(_ConfiguredTrainer):
    """M&N trains no cascade. So the validation predicts for none."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        self.configuration_manager.configuration.pop("next_stage", None)
        super().perform_actual_validation(save_probabilities)


class _WithUnlabeledCases(_WithoutCascade):
    """Trains nnU-Net's 3D network on labeled cases and, taught by others, on unlabeled ones. It can stop and resume."""

    logged: ClassVar[tuple[str, ...]] = ("unlabeled_fraction",)  # lists in nnU-Net's log, beside its own
    unused: ClassVar[tuple[str, ...]] = ()  # settings that change nothing

    @last_word
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        self.asked_to_continue = bool(plans.get("continue_training"))  # nnU-Net's --c; 2.6 does not write it here
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.ranks = ddp.find_ranks(self.device)
        self.failures = WorkerFailures()
        self.iteration = 0  # of the epoch
        self.train_outputs: list[dict[str, float]] = []  # of the epoch so far
        self.random_state: dict[str, Any] | None = None  # at the end of the epoch's training, before validation
        self.resumed: dict[str, Any] | None = None
        self.stopping = Stopping(self.ranks)
        self.lock = owner.FoldLock(Path(self.output_folder))
        self.n_cases: dict[str, int] = {}
        self.trained_on: set[str] = set()  # labeled and unlabeled cases of the training, and of its earlier parts
        self.has_learned = False
        self.checkpoint_every: int  # epochs
        self.foreground_share: float  # of a whole batch; stock divides it among GPUs
        self.iterations: int  # of a whole epoch; a resumed epoch is shorter
        self.schedule: Schedule
        self.unlabeled_counts: UnlabeledCounts
        self.unlabeled_cases: Cases
        self.foreground: locations.ForegroundLocations
        self.cotrainer: CoTrainer
        self.skips: skips.Skips
        for key in self.logged:
            self._log_lists().setdefault(key, [])

    @last_word
    def initialize(self) -> None:
        if not self.was_initialized:  # only now: the constructor of a subclass may have changed the lengths
            self.checkpoint_every, self.save_every = self.save_every, NEVER  # stock's `latest` lacks the best score
            self.foreground_share = self.oversample_foreground_percent
            self.iterations = self.num_iterations_per_epoch
            self.schedule = self.build_schedule()
            self.unlabeled_counts = self.build_counts()
        super().initialize()

    # ---- for a subclass to replace -------------------------------------------------------------------------------

    def check_plans(self, configuration: str, planned: Any) -> None:
        """Raise an MNError if this trainer cannot train the configuration of the plans."""
        check_co_trainable(planned, configuration, self.mn_config)
        ddp.refuse_ranks(planned.batch_size)

    def build_schedule(self) -> Schedule:
        """The learning rate and the share of unlabeled samples, by iteration."""
        return Schedule.of(self.mn_config, total=self.num_epochs * self.iterations)

    def build_counts(self) -> UnlabeledCounts:
        """The number and the weight of unlabeled samples, by iteration."""
        batch_size = self.configuration_manager.batch_size
        return UnlabeledCounts.from_config(self.mn_config, self.schedule, batch_size=batch_size, ranks=self.ranks.size)

    def most_unlabeled_weight(self) -> float:
        """The weight of as many unlabeled samples as labeled ones, beside 1 for the labeled ones."""
        return 1.0

    def build_cotrainer(self) -> CoTrainer:
        """The students and their teacher."""
        raise NotImplementedError

    def unused_settings(self) -> tuple[str, ...]:
        """Settings that change nothing in this training."""
        return self.unused

    def foreground_network(self) -> torch.nn.Module:
        """The network for finding foreground in whole unlabeled cases: volume -> logits, or a list of them."""
        return self.cotrainer.student_3d.network

    def find_foreground(self, position: int) -> None:
        """Find the foreground of unlabeled cases for their crops, after so many iterations."""
        foreground.refresh_from_trainer(self, self.foreground, self.unlabeled_cases, position=position)

    def stored_masks(self) -> StoredMasks | None:
        """Masks in place of the unlabeled cases' labels, made before the first batch. None: they are made online."""
        return None

    def number_with_masks(self, batch: dict[str, Any]) -> int:
        """How many samples of a batch come with a mask. They come first."""
        n_labeled: int = batch["n_labeled"]
        return n_labeled

    def folders_of(self, trainer: str) -> ModelFolders:
        """Where nnU-Net keeps a trainer's model of this dataset, these plans and this configuration."""
        return ModelFolders(
            dataset=Path(nnUNet_results) / self.plans_manager.dataset_name,
            trainer=trainer,
            plans=self.plans_manager.plans_name,
            configuration=self.configuration_name,
        )

    # ---- start and end -------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, EpochStartRates(
            optimizer, lambda epoch: self.schedule.learning_rate_factor(epoch * self.iterations)
        )

    @last_word
    def run_training(self) -> None:
        try:
            super().run_training()
        except Exception as error:
            if self.stopping.is_due_to_a_signal(error):
                self._stop()
            self.stopping.finish_loaders()  # else their threads print after the last word
            self._tell(error)
            raise

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        if self.resumed is not None:
            self._refuse_to_continue(self.resumed)
        elif self.asked_to_continue:
            kept = [folder.name for folder in checkpoint.kept_folders(Path(self.output_folder))]
            lies = f" (what earlier trainings left is in {', '.join(kept)})" if kept else ""
            self._warn(
                f"--c was given, but there is no checkpoint in {self.output_folder}{lies}: a new training starts at "
                f"epoch 0"
            )
        if self.local_rank == 0:  # the ranks of a training are one owner
            self.stopping.end_at_once()
            self.lock.acquire()
            checkpoint.remove_leftovers(Path(self.output_folder))
        self.print_to_log_file("M&N settings:", self.mn_config.to_dict())
        self.foreground = locations.ForegroundLocations(
            Path(self.output_folder), foreground.location_keys(self.label_manager), iterations_per_epoch=self.iterations
        )
        self.cotrainer = self._build()  # before the unlabeled cases: missing weights fail in seconds
        unused = self.unused_settings()
        for name in environment_layer().values:
            if name in unused:
                self.print_to_log_file(f"WARNING: nnUNet_mn_{name} changes nothing in this training")
        if self.resumed is not None:
            self._restore(self.resumed)
        self.skips = skips.Skips(self._students(), updates=self.iterations, log=self.print_to_log_file)
        super().on_train_start()
        if self.resumed is None and self.local_rank == 0 and not self.disable_checkpointing:
            self._keep_earlier_training()  # only now: a start that fails leaves them in place
        if self.resumed is not None:  # only now: stock draws random numbers while loaders start
            if self.local_rank == 0:
                checkpoint.restore_random_state(self.resumed["random"])
            else:  # checkpoints hold no state of this rank
                checkpoint.seed_all(ddp.own_seed(self.mn_config.seed, self.local_rank, self._position()))
        self.resumed = None
        self._refresh_foreground()  # if the last one was given up, or its file is gone
        self.stopping.listen()

    def _build_loss(self) -> Any:
        """Stock's loss. A network with one output gets its weight: stock divides 0 by 0, and learns nothing."""
        with np.errstate(invalid="ignore"):
            loss: Any = super()._build_loss()
        if self.enable_deep_supervision and len(loss.weight_factors) == 1:
            loss.weight_factors = (1.0,)
        return loss

    def stock_parts(self) -> assembly.StockParts:
        """nnU-Net's 3D network and what it is trained with."""
        return assembly.StockParts(
            network=assembly.without_ddp(self.network),
            optimizer=self.optimizer,
            scaler=self.grad_scaler,
            deep_supervision_weights=self.loss.weight_factors if self.enable_deep_supervision else (1.0,),
            batch_dice=self.configuration_manager.batch_dice,
            labels=assembly.label_space(self.label_manager),
            device=self.device,
            ranks=self.ranks,
        )

    def _build(self) -> CoTrainer:
        """Build the students and their teacher. A resumed training needs the same ones."""
        return self.build_cotrainer()

    def on_train_end(self) -> None:
        of_earlier = self.disable_checkpointing and self.local_rank == 0  # stock's first rank would remove it
        with checkpoint.left_alone(Path(self.output_folder) / LATEST) if of_earlier else nullcontext():
            super().on_train_end()
        self.stopping.finish_loaders()
        self.stopping.stop_listening()
        if self.stopping.is_asked():
            self._end("after the last epoch", remedy="run the same command with --c for the validation")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        self._give_back()

    def _give_back(self) -> None:
        """Let others have the folder and the signals."""
        self.lock.release()
        self.stopping.give_signals_back()

    # ---- data ----------------------------------------------------------------------------------------------------

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Stock's loaders, but with mixed batches for training. Stock has no hook for a loader's class."""
        scales = self._get_deep_supervision_scales()
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        of_labels = loader.transform_options(self.label_manager)
        augment = self.get_training_transforms(
            patch_size, rotation, scales, mirror_axes, dummy_2d, is_cascaded=self.is_cascaded,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm, **of_labels,
        )  # fmt: skip
        check = self.get_validation_transforms(scales, is_cascaded=self.is_cascaded, **of_labels)
        if self.mn_config.seed is not None:
            loader.make_repeatable(augment)
        labeled, val = self.get_tr_and_val_datasets()
        common = {
            "final_patch_size": patch_size,
            "label_manager": self.label_manager,
            "oversample_foreground_percent": self.oversample_foreground_percent,
            "probabilistic_oversampling": self.probabilistic_oversampling,
            "failures": self.failures,
        }
        self.unlabeled_cases = self._unlabeled_dataset(labeled.identifiers, val.identifiers)
        n_workers = workers.worker_count()
        train_loader = loader.MixedLoader(
            loader.MixedCases(labeled, self.unlabeled_cases, self.foreground, self.stored_masks()),
            counts=self.unlabeled_counts, part=ddp.part_of_batch(self.ranks, self.batch_size),
            first=self._position() - 1,  # stock drops a loader's first batch
            workers=n_workers, foreground_share=self.foreground_share,
            patch_size=initial_patch_size, transforms=augment, **common,
        )  # fmt: skip
        val_loader = loader.TellingLoader(val, self.batch_size, patch_size, transforms=check, **common)
        seed = ddp.own_seed(self.mn_config.seed, self.local_rank, self._position())
        running = loader.start(
            train_loader, val_loader, workers=n_workers, pin_memory=self.device.type == "cuda", seed=seed
        )
        self.stopping.loaders = running  # for finish_loaders, if one does not start
        for one in running:
            next(one)
        return ddp.together(running, self.ranks)

    @last_word
    def do_split(self) -> tuple[list[str], list[str]]:
        labeled, val = super().do_split()
        _refuse_seen(
            labeled, val, self.trained_on,
            when="before this checkpoint was written", remedy=", or start a new training without --c",
        )  # fmt: skip
        return labeled, val

    def _unlabeled_dataset(self, labeled: list[str], val: list[str]) -> Cases:
        """Find the unlabeled cases and preprocess the missing ones."""
        planned = self._planned_dataset()
        splits, _ = read_splits(planned.folders.preprocessed, planned.folders.raw)
        names = prepare_unlabeled(
            planned, roles_of_fold(splits, self.fold, train=labeled, val=val), self.mn_config.unlabeled_sources,
            num_processes=min(default_num_processes, max(1, workers.worker_count())), log=self.print_to_log_file,
        ).names  # fmt: skip
        self.trained_on.update(labeled, names)
        self.n_cases = {"labeled": len(labeled), "unlabeled": len(names), "val": len(val)}
        if self.resumed is not None and (then := self.resumed["cases"]) != self.n_cases:
            self._warn(f"the numbers of cases have changed since the checkpoint: from {then} to {self.n_cases}")
        most = self.most_unlabeled_weight()
        lighter = self.unlabeled_counts.on_top and most < 1
        weight = f" and weigh up to {most:.3g} times as much as labeled ones" if lighter else ""
        self.print_to_log_file(
            f"M&N trains on {len(labeled)} labeled and {len(names)} unlabeled cases; unlabeled samples start at "
            f"iteration {self.schedule.supervised} of {self.schedule.total}{weight}"
        )
        # labeled cases may still lie in nnU-Net's older format: the folders' classes can differ
        folder = planned.cases.unlabeled
        dataset: Cases = dataset_class_of(folder)(str(folder), list(names))
        return dataset

    def _refresh_foreground(self) -> None:
        due = self.schedule.refresh_due(self._position())
        if self.mn_config.foreground_crops and due > self.foreground.position and not self._has_ended():
            self.find_foreground(due)

    # ---- an epoch ------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.num_iterations_per_epoch = self.iterations - self.iteration
        self.skips.begin_epoch()

    def train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        position = self._position()
        factor = self.schedule.learning_rate_factor(position)
        for student in self._students():
            scale_learning_rates(student.optimizer, factor)
        targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        self.stopping.in_step = True
        losses = self.cotrainer.step(
            batch["data"].to(self.device, non_blocking=True),
            [target.to(self.device, non_blocking=True) for target in targets],
            self.number_with_masks(batch),
            unlabeled_weight=self.unlabeled_counts.weight(position, most=self.most_unlabeled_weight()),
        )
        self.stopping.in_step = False
        if self.skips.has_new():
            self.skips.look(ddp.cases_of_all_ranks(batch["keys"], self.ranks))
        self.iteration += 1
        self.has_learned = True
        output = {
            "loss": losses["3d"],
            **({"loss_2d": losses["2d"]} if "2d" in losses else {}),
            "unlabeled": self.unlabeled_counts.of(position) / self.unlabeled_counts.batch_size,
        }
        self.train_outputs.append(output)
        self._refresh_foreground()
        self._stop_if_asked()
        return output

    def on_train_epoch_end(self, train_outputs: list[dict[str, float]]) -> None:
        super().on_train_epoch_end(self.train_outputs)  # with those from before a resume
        self._log("unlabeled_fraction", float(np.mean([output["unlabeled"] for output in self.train_outputs])))
        self.num_iterations_per_epoch = self.iterations
        self.random_state = checkpoint.random_state()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        output: dict[str, Any] = super().validation_step(batch)
        self._stop_if_asked()
        return output

    def on_epoch_end(self) -> None:
        skipped = {student.name: student.skipped for student in self._students() if student.skipped}
        if skipped:
            self.print_to_log_file(f"WARNING: updates skipped so far, since loss or gradient was not finite: {skipped}")
        self.iteration, self.train_outputs, self.random_state = 0, [], None
        super().on_epoch_end()  # writes `best` and counts the epoch
        if self.local_rank == 0:
            plot_progress(self._log_lists(), Path(self.output_folder) / "progress_mn.png")
        if self.current_epoch % self.checkpoint_every == 0 and self.current_epoch < self.num_epochs:
            self._save_latest(epochs_done=self.current_epoch)

    def _students(self) -> tuple[Student, ...]:
        return self.cotrainer.students

    def _has_ended(self) -> bool:
        """Whether all epochs are done, and `--c` asks for the validation alone."""
        return self.current_epoch >= self.num_epochs

    def _position(self) -> int:
        """Iterations done of the whole training."""
        return self.current_epoch * self.iterations + self.iteration

    # ---- logging -------------------------------------------------------------------------------------------------

    def _log_lists(self) -> dict[str, list[Any]]:
        """nnU-Net's log. Stock draws it in `progress.png` and keeps it in checkpoints."""
        logger: Any = getattr(self.logger, "local_logger", self.logger)  # nnunetv2 2.6 has one logger
        lists: dict[str, list[Any]] = logger.my_fantastic_logging
        return lists

    def _log(self, key: str, value: Any) -> None:
        self.logger.log(key, value, self.current_epoch)

    def _last_logged(self) -> dict[str, Any]:
        return {key: self._log_lists()[key][-1] for key in self.logged}

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)  # writes nothing, and says so
            return
        path = Path(filename)
        final = path.name == FINAL  # without an optimizer of the 2D network, to keep the file small
        if final and path.exists() and not self.has_learned:
            self.print_to_log_file(f"the training had ended before: {path} stays as it is")
            return
        mn = {**state.mn_state(self), **self._own_state(with_optimizer=not final)}
        is_of_plans = type(self).build_network_architecture is nnUNetTrainer.build_network_architecture
        before = self._keep_earlier_end if final else None
        checkpoint.save(super().save_checkpoint, path, mn=mn, is_of_plans=is_of_plans, before=before)
        if path.name == LATEST:
            self._keep_earlier_end()

    def _keep_earlier_end(self) -> None:
        """A finished training may have got more epochs. Its end is kept, and `--c` must not go back to it."""
        if kept := checkpoint.keep_earlier(Path(self.output_folder), checkpoint.OF_THE_END):
            self.print_to_log_file(f"what the finished training left is kept in {kept}")

    def _save_latest(self, *, epochs_done: int) -> None:
        """Write `checkpoint_latest.pth`. Stock stores `current_epoch + 1` as the epoch to go on with."""
        epoch, self.current_epoch = self.current_epoch, epochs_done - 1
        self.save_checkpoint(str(Path(self.output_folder) / LATEST))
        self.current_epoch = epoch

    @last_word
    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        content, file = self._read_checkpoint(filename_or_checkpoint)
        mn = reading.mn_part(content, file)
        if mn.get("dataset", self.plans_manager.dataset_name) != self.plans_manager.dataset_name:
            raise MNError(f"{file} is of {mn['dataset']}, not of {self.plans_manager.dataset_name}: move it away")
        now = meaning(self.plans_manager.plans, self.configuration_name, self.dataset_json)
        check_means_the_same(now, file, content)
        if not self.was_initialized:
            self.initialize()
        weights = content.get("network_weights", {})  # check_network names missing ones
        checkpoint.check_network(weights, assembly.unwrapped(self.network), file)
        super().load_checkpoint(content)
        self.trained_on.update(mn.get("trained_on", ()))
        self.resumed = mn  # on_train_start applies it to the 2D network; validation alone needs none
        for key in self.logged:
            self._log_lists().setdefault(key, [])

    def _own_state(self, *, with_optimizer: bool) -> dict[str, Any]:
        """What a checkpoint keeps of the students and their teacher, beside the 3D network."""
        raise NotImplementedError

    def _restore_own(self, mn: dict[str, Any]) -> None:
        """Undo `_own_state`."""
        raise NotImplementedError

    def _refuse_to_continue(self, mn: dict[str, Any]) -> None:
        """Raise an MNError if the settings no longer fit a checkpoint's state."""
        state.refuse_to_continue(mn, self.mn_config, batch_size=self.unlabeled_counts.batch_size)

    def _restore(self, mn: dict[str, Any]) -> None:
        for change in state.changed_settings(mn, self.mn_config):
            self.print_to_log_file(f"M&N: {change}")
        self._restore_own(mn)
        self.iteration = min(mn["iteration"], self.iterations)  # an epoch may have become shorter
        self.train_outputs = mn["train_outputs"]
        self.print_to_log_file(f"M&N goes on in epoch {self.current_epoch} after iteration {self.iteration}")
        if not self.foreground.use(mn.get("foreground", locations.NEVER)):
            self.print_to_log_file("WARNING: the checkpoint's foreground locations are gone: they are found anew")

    def _keep_earlier_training(self) -> None:
        """Without --c nnU-Net begins anew. It would write over the earlier training's files, or later take them."""
        if kept := checkpoint.keep_earlier(Path(self.output_folder)):
            self._warn(
                f"a new training starts at epoch 0. What an earlier one left is kept in {kept}. To go on with that "
                f"one, stop this training, move those files back in place of the new ones and add --c"
            )

    def _warn(self, text: str) -> None:
        """Log a warning that nobody overlooks."""
        line = "#" * 100
        self.print_to_log_file(f"\n{line}\nWARNING: {text}\n{line}", add_timestamp=False)

    # ---- stopping ------------------------------------------------------------------------------------------------

    def _stop_if_asked(self) -> None:
        if self.stopping.is_asked():
            self._stop()
        for running in self.stopping.broken_loaders():
            next(running)  # raises its error now, not with its next batch, at worst an epoch later

    def _stop(self) -> NoReturn:
        """Save the unfinished epoch and end the process."""
        for values in self._log_lists().values():
            del values[self.current_epoch :]
        self._save_latest(epochs_done=self.current_epoch)
        self.stopping.finish_loaders()
        self.ranks.wait()  # wait for the writing rank: when one process ends, torch ends the others
        self._end(
            f"in epoch {self.current_epoch} after iteration {self.iteration} of {self.iterations}",
            remedy="run the same command with --c to go on",
        )

    def _end(self, where: str, *, remedy: str) -> NoReturn:
        """End the process with one line."""
        why = self.stopping.signal_name() or "a signal to another process"
        if self.disable_checkpointing:
            remedy = "nothing was saved, since --disable_checkpointing was given"
        last = f"M&N stopped on {why} {where}; {remedy}"
        self.print_to_log_file(last, also_print_to_console=False)
        raise SystemExit(last)

    def _tell(self, error: Exception) -> None:
        """Log the error. If a loader has told an MNError, in a worker or on another rank, raise it."""
        if isinstance(error, MNError):
            return
        failure = self.failures.first()
        text = "".join(traceback.format_exception(error)) if failure is None else failure.traceback
        self.print_to_log_file(text, also_print_to_console=False)
        of_any_rank = error.sentence if isinstance(error, ddp.LoaderFailureError) else None
        if sentence := (failure and failure.sentence) or of_any_rank:
            raise MNError(sentence) from error


class nnUNetTrainerMN(_WithUnlabeledCases):
    """Co-trains nnU-Net's 3D network and a pretrained 2D one on labeled and unlabeled cases (arXiv 2509.15167)."""

    logged = (*_WithUnlabeledCases.logged, *LOGGED_2D)
    unused = ("teacher_folder", "student_masks")  # for a student
    pretrained_hash: str | None

    def most_unlabeled_weight(self) -> float:
        """The setting, or the default for so many labels."""
        return self.mn_config.unlabeled_weight or default_unlabeled_weight(self.n_cases["labeled"])

    def unused_settings(self) -> tuple[str, ...]:
        network = assembly.network_2d(self.cotrainer)
        spec = getattr(network, "spec", None)  # another second student has none
        if spec is None or spec.adaptation == "lora":
            return self.unused
        no_dropout = self.mn_config.dropout_2d > 0 and same_in_eval(network)  # the model has none of its own
        return (*self.unused, "lora_rank", *(["dropout_2d"] if no_dropout else []))

    def build_cotrainer(self) -> CoTrainer:
        """Both students and their teacher."""
        built = assembly.build_cotraining(
            self.mn_config,
            self.stock_parts(),
            in_channels=self.num_input_channels,
            spacing=self.configuration_manager.spacing,
            intensities=self._intensities(),
        )
        self.print_to_log_file(assembly.network_2d(built).description)
        return built

    def _build(self) -> CoTrainer:
        """Build both students. The backbone of a resumed training may have a new name, but not other weights."""
        try:
            built = self.build_cotrainer()
        except MNError as error:
            if self.resumed is not None:
                state.refuse_other_weights(self.resumed, self.mn_config, None, str(error))
            raise
        self.pretrained_hash = state.backbone_hash(built)
        if self.resumed is not None:
            state.refuse_other_weights(self.resumed, self.mn_config, self.pretrained_hash)
        return built

    def _intensities(self) -> Intensities | None:
        """Center and spread of each channel, for the 2D network. A resumed training keeps its own."""
        if self.resumed is not None:
            return cast(Intensities | None, self.resumed.get("intensities"))
        return assembly.channel_intensities(
            self.configuration_manager.normalization_schemes,
            self.plans_manager.foreground_intensity_properties_per_channel,
        )

    @property
    def _student_2d(self) -> Student:
        return self.cotrainer.students[1]

    # ---- an epoch ------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        student = self._student_2d
        student.network.train()
        factor = self.schedule.learning_rate_factor(self.current_epoch * self.iterations)
        scale_learning_rates(student.optimizer, factor)
        self._log("lrs_2d", student.learning_rate())

    def on_train_epoch_end(self, train_outputs: list[dict[str, float]]) -> None:
        super().on_train_epoch_end(train_outputs)
        self._log("train_losses_2d", float(np.mean([output["loss_2d"] for output in self.train_outputs])))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._student_2d.network.eval()
        self.counts_2d: list[Counts] = []
        self.val_losses_2d: list[float] = []

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._validate_2d(batch)  # first: stock overwrites ignored voxels of the target
        return super().validation_step(batch)

    def _validate_2d(self, batch: dict[str, Any]) -> None:
        target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        truth = self.cotrainer.labels.encode(target.to(self.device, non_blocking=True))
        with self.cotrainer.autocast(), without_search():
            outputs = self._student_2d.network(batch["data"].to(self.device, non_blocking=True))
        self.val_losses_2d.append(float(self._student_2d.loss(outputs, [truth])))
        self.counts_2d.append(count(outputs[0], truth, self.cotrainer.labels))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        dice = dice_per_class(self.counts_2d, self.ranks)
        self._log("val_losses_2d", float(np.mean(self.val_losses_2d)))
        self._log("dice_per_class_or_region_2d", dice)
        self._log("mean_fg_dice_2d", float(np.nanmean(dice)) if not np.all(np.isnan(dice)) else float("nan"))

    def on_epoch_end(self) -> None:
        last = self._last_logged()
        self.print_to_log_file(
            f"2D network: train_loss {last['train_losses_2d']:.4f}, val_loss {last['val_losses_2d']:.4f}, "
            f"pseudo dice {[round(value, 4) for value in last['dice_per_class_or_region_2d']]}, "
            f"learning rate {last['lrs_2d']:.2g}, unlabeled share {last['unlabeled_fraction']:.3f}"
        )
        super().on_epoch_end()

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.mn_config.join and self.local_rank == 0 and not self.disable_checkpointing:
            self._join()

    def _join(self) -> None:
        """Write the joint model. The training is whole without it: a fault is a warning."""
        try:
            joined = join(self.folders_of(type(self).__name__), [str(self.fold)], keep=True)
            self.print_to_log_file(f"wrote the joint model {joined}")
        except (MNError, OSError) as error:
            self.print_to_log_file(f"WARNING: the joint model was not written: {error}")

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def _own_state(self, *, with_optimizer: bool) -> dict[str, Any]:
        kept = state.cotraining_state(self.cotrainer, with_optimizer=with_optimizer)
        spec = getattr(assembly.network_2d(self.cotrainer), "spec", None)  # another second student has none
        intensities = None if spec is None else spec.intensities
        return {**kept, "pretrained_hash": self.pretrained_hash, "intensities": intensities}

    def _restore_own(self, mn: dict[str, Any]) -> None:
        state.restore_cotraining(self.cotrainer, mn)
        if mn["optimizer_2d"] is None and not self._has_ended():
            self.print_to_log_file("WARNING: a final checkpoint holds no optimizer of the 2D network: it starts anew")


class nnUNetTrainerMNStudent(_WithUnlabeledCases):
    """Trains nnU-Net's 3D network anew, taught by the frozen joint model of a finished M&N training.

    With masks made online the labeled batch stays whole, and as many unlabeled samples come on top. With stored ones
    half of the batch is unlabeled. The last tenth sees labels alone. So the settings in `unused` change nothing.
    """

    unused = (
        *("schedule", "batch", "guidance", "unlabeled_weight", "rounding", "supervised_fraction", "teacher"),
        *("backbone", "adaptation", "lora_rank", "dropout_2d", "lr_2d", "slice_axes", "slice_step"),
    )
    taught_on: frozenset[str] = frozenset()  # cases of the teacher's training; a validation alone has no teacher

    def build_schedule(self) -> Schedule:
        share = 0.5 if self._stores_masks else 1.0
        return DistillationSchedule(total=self.num_epochs * self.iterations, supervised=0, share=share)

    def build_counts(self) -> UnlabeledCounts:
        return UnlabeledCounts(
            self.schedule,
            batch_size=self.configuration_manager.batch_size,
            batch="replace" if self._stores_masks else "add",
            rounding="diffusion",
            ranks=self.ranks.size,
        )

    def check_plans(self, configuration: str, planned: Any) -> None:
        """Raise an MNError if this trainer cannot train the plans. Settings that it ignores do not count."""
        used = replace(
            self.mn_config, batch="replace" if self._stores_masks else "add", rounding="diffusion", guidance="number",
            unlabeled_weight=None,
        )  # fmt: skip
        check_co_trainable(planned, configuration, used)
        ddp.refuse_ranks(planned.batch_size)

    @property
    def _stores_masks(self) -> bool:
        return self.mn_config.student_masks == "stored"

    def build_cotrainer(self) -> CoTrainer:
        folders = self.folders_of(nnUNetTrainerMN.__name__)
        own = TrainedPlans(self.plans_manager.plans, self.dataset_json, self.configuration_name)
        joint = teacher_model.load(folders, str(self.fold), self.mn_config, like=own)
        self.print_to_log_file(f"the teacher is {joint.source}")
        self.teacher_hash, self.teacher_weights = joint.hash, joint.weights_hash
        self.joint = joint.network.to(self.device)
        self.joint.network_2d.slices_per_forward = self.mn_config.slices_per_forward
        self.taught_on = joint.trained_on
        return assembly.build_distillation(self.mn_config, self.stock_parts(), self.joint)

    @last_word
    def do_split(self) -> tuple[list[str], list[str]]:
        labeled, val = super().do_split()
        _refuse_seen(
            labeled, val, self.taught_on,
            when="by the teacher of this student", remedy=", or train the teacher with this split",
        )  # fmt: skip
        return labeled, val

    def foreground_network(self) -> torch.nn.Module:
        return self.joint

    def stored_masks(self) -> StoredMasks | None:
        if not self._stores_masks or self._has_ended():
            return None
        masks = StoredMasks(Path(self.output_folder), self.teacher_hash)
        predict = sliding_window(self, self.joint)
        n = store(
            masks, self.unlabeled_cases, lambda image: to_labels(predict(image), self.label_manager), ranks=self.ranks
        )
        self.print_to_log_file(
            f"the teacher's masks of {len(self.unlabeled_cases.identifiers)} cases are stored in "
            f"{masks.folder}; {n} of them were missing"
        )
        return masks

    def find_foreground(self, position: int) -> None:
        if not self._stores_masks:
            super().find_foreground(position)
            return
        masks = StoredMasks(Path(self.output_folder), self.teacher_hash)
        line = foreground.take_from_masks(
            self.foreground, self.unlabeled_cases, masks, position=position, seed=self.mn_config.seed or 0,
            ranks=self.ranks,
        )  # fmt: skip
        self.print_to_log_file(line)

    def number_with_masks(self, batch: dict[str, Any]) -> int:
        return len(batch["data"]) if self._stores_masks else super().number_with_masks(batch)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.mn_config.join:
            self.print_to_log_file(
                "WARNING: join writes nothing after a student: run 'nnunet-mn join' with '-tr nnUNetTrainerMNStudent'"
            )

    def _refuse_to_continue(self, mn: dict[str, Any]) -> None:
        state.refuse_to_continue(
            mn, self.mn_config, batch_size=self.unlabeled_counts.batch_size, fields=("optimizer_3d",)
        )

    def _own_state(self, *, with_optimizer: bool) -> dict[str, Any]:
        teacher_2d = cast(Network2D, self.joint.network_2d.network)
        return {
            "teacher_hash": self.teacher_hash,
            "teacher_weights": self.teacher_weights,
            "teacher_backbone": teacher_2d.spec.facts.name,
            "slices": self.cotrainer.sampler.generator.get_state(),
            "skipped": [self.cotrainer.student_3d.skipped],
        }

    def _restore_own(self, mn: dict[str, Any]) -> None:
        if mn["teacher_hash"] != self.teacher_hash:
            raise MNError(
                "the teacher differs from the one that this training began with (its weights, the weight of its 2D "
                "network, or its axes): put that one back, or start a new training without --c"
            )
        if "slices" in mn:  # an earlier version's teacher drew no axis
            self.cotrainer.sampler.generator.set_state(mn["slices"])
        (self.cotrainer.student_3d.skipped,) = mn["skipped"]


class nnUNetTrainerMNLabeledOnly(_ConfiguredTrainer):
    """The baseline: stock nnU-Net on the labeled cases for as many updates as an M&N training takes."""

    variant: ClassVar[dict[str, Any]] = {"optimizer_3d": "sgd"}  # nnU-Net's

    @last_word
    def get_dataloaders(self) -> tuple[Any, Any]:
        state.refuse(self.other_optimizer)  # here, since a validation alone has no loaders
        if self.mn_config.seed is not None and get_allowed_n_proc_DA() > 0:
            self.print_to_log_file(
                f"WARNING: seed is {self.mn_config.seed}, but nnU-Net seeds no worker of its loader: the next training "
                f"comes out differently; set nnUNet_n_proc_DA=0"
            )
        loaders: tuple[Any, Any] = super().get_dataloaders()
        return loaders


class nnUNetTrainerMN_1epoch(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 1}


class nnUNetTrainerMN_5epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 5}


class nnUNetTrainerMN_10epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 10}


class nnUNetTrainerMN_20epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 20}


class nnUNetTrainerMN_50epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 50}


class nnUNetTrainerMN_100epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 100}


class nnUNetTrainerMN_250epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 250}


class nnUNetTrainerMN_500epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 500}


class nnUNetTrainerMN_2000epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 2000}


class nnUNetTrainerMN_4000epochs(nnUNetTrainerMN):
    variant: ClassVar[dict[str, Any]] = {"epochs": 4000}


class nnUNetTrainerMNJoint(_WithoutCascade):
    """Validates the models that `nnunet-mn join` writes, by nnU-Net's `--val`. It trains nothing."""

    @last_word
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        # stock would replace the 2D network's norms by synchronized ones, some of which lose their activation
        ddp.refuse_several_ranks(type(self).__name__)
        folders = ModelFolders(
            dataset=Path(nnUNet_results) / plans["dataset_name"],
            trainer=nnUNetTrainerMN.__name__,
            plans=plans["plans_name"],
            configuration=configuration,
        )
        super().__init__(joined_plans(plans, folders, fold), configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False

    def configure_optimizers(self) -> tuple[Any, Any]:
        # a joint checkpoint has no optimizer's state
        return SimpleNamespace(load_state_dict=lambda _: None, param_groups=()), None

    def _do_i_compile(self) -> bool:
        return False  # most of the work is the 2D network's, which is never compiled

    @last_word
    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        content, file = self._read_checkpoint(filename_or_checkpoint)
        self.trained_on = teacher_model.cases_behind(file, content)
        super().load_checkpoint(content)

    @last_word
    def do_split(self) -> tuple[list[str], list[str]]:
        labeled, val = super().do_split()
        _refuse_seen(labeled, val, self.trained_on, when="by the networks of this joint model", remedy="")
        return labeled, val

    @last_word
    def run_training(self) -> None:
        raise MNError(
            "nnUNetTrainerMNJoint trains nothing: give --val to validate the joint model, or train nnUNetTrainerMN and "
            "run 'nnunet-mn join'"
        )


class nnUNetTrainerMNBenchmark_5epochs(nnUNetTrainerBenchmark_5epochs, nnUNetTrainerMN):
    """Times an epoch on a card, as nnU-Net's benchmark trainers do, in the same `benchmark_result.json`.

    It adds half an unlabeled sample for each labeled one. A real training adds 0.3 to 0.4 on average. It keeps no
    checkpoint.
    """

    variant: ClassVar[dict[str, Any]] = {"epochs": 5, "foreground_crops": False}

    @last_word
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        check_is_card(device, type(self).__name__)
        if fold != 0:
            raise MNError(f"{type(self).__name__} takes fold 0, as nnU-Net's own benchmark does, not {fold!r}")
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.mn_config.epochs or self.num_epochs  # stock's benchmark has set 5

    def build_schedule(self) -> Schedule:
        return HalfUnlabeled(total=self.num_epochs * self.iterations, supervised=0)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        self._give_back()
