"""Training on images with labels and images without: cross-entropy, and style consistency."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from models.networks.classifier import Classifier
from models.networks.loss_prediction import LossPrediction
from models.networks.style import featurizer_maps, randomize_style
from training.adaptation_config import Adaptation
from training.config import RunConfig
from training.data import BalancedBatches
from training.fit import adamw, memory_format, rate
from training.losses import ranking_loss, style_consistency
from training.pseudo_labels import PseudoLabels

SOURCE, LABELLED, PSEUDO = 0, 1, 2
"""Kinds of labelled images: of the source, of the target with a true label, of the target with a pseudo-label."""
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
Change: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


def settings_of(config: RunConfig) -> Adaptation:
    """Return how a run is adapted; a ValueError if it is not."""
    if config.adaptation is None:
        raise ValueError("the config says nothing of an adaptation")
    return config.adaptation


@dataclass(frozen=True)
class Material:
    """What an adaptation learns from.

    Attributes
    ----------
    labelled : Tensor, float32, shape (L, C, H, W)
        With true labels: of the source, of the target, of both, or of neither.
    labels : ndarray of int64, shape (L,)
    domains : sequence of str, L of them
        Those of the target bear the adaptation's ``domain``.
    target : Tensor, float32, shape (N, C, H, W)
        Without labels; none of them is among the labelled ones.
    """

    labelled: Tensor
    labels: NDArray[np.int64]
    domains: Sequence[str]
    target: Tensor


class AdaptationTraining(lightning.LightningModule):
    """Cross-entropy on what has a label, true or pseudo, and style consistency on what has none.

    Source and target pass apart, each normalised by its own statistics. In one batch they would be normalised by those of a
    mixture, in which each lies to one side, and what tells hospitals apart would shift every class. The running statistics are
    of no use afterwards: :func:`training.adabn.adapt_statistics` sets the target's.

    Parameters
    ----------
    classifier : Classifier
    loss_prediction : LossPrediction
        Trained on true labels only, if the config's is "joint"; its gradient does not reach the features.
    config : RunConfig
        Of the adapted run, with the epochs and the learning rate of this training.
    seed : int
        Of everything random in a step.
    change : callable
        Augmentation: (images, generator) -> images, on the CPU.

    References
    ----------
    Nam et al., "Reducing Domain Gap by Reducing Style Bias", arXiv:1910.11645, section 3.1 (styles) and the entry to the 2019
    challenge (consistency). The adversarial step, whose style head is thrown away after training, takes no part.
    """

    def __init__(
        self, classifier: Classifier, loss_prediction: LossPrediction, config: RunConfig, seed: int, change: Change
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.loss_prediction = loss_prediction
        self.config = config
        self.seed = seed
        self.change = change
        self.stage = min(config.style_stage, len(classifier.stages) - 1)
        self.weight = settings_of(config).consistency_weight

    def _rest(self, features: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.classifier.stages[self.stage :]:
            features = stage(features)
            maps.append(features)
        return maps

    def losses(
        self, images: Tensor, labels: Tensor, kinds: Tensor, unlabelled: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return cross-entropy, ranking loss and style consistency.

        Parameters
        ----------
        images, labels, kinds : Tensor, shapes (L, C, H, W), (L,) and (L,), int64, L >= 2
            Kinds are :data:`SOURCE`, :data:`LABELLED` or :data:`PSEUDO`; a single one of the source is left out.
        unlabelled : Tensor, shape (N, C, H, W), N >= 2
        generator : Generator
            On the CPU.

        Returns
        -------
        task : Tensor, scalar
            Mean of the cross-entropies of the labelled images, as they are and in a randomised style.
        ranking : Tensor, scalar
            Over the true labels; 0 without a pair of them.
        consistency : Tensor, scalar
            :func:`training.losses.style_consistency` of the unlabelled images.
        """
        task, ranking = [], []
        consistency = torch.zeros((), device=images.device)
        for members, more in ((kinds == SOURCE, unlabelled[:0]), (kinds != SOURCE, unlabelled)):
            chosen, count = labels[members], int(members.sum())
            if count + len(more) < 2:
                continue  # one image of the source has no other's style to take
            maps = featurizer_maps(self.classifier, torch.cat([images[members], more]), self.stage)
            plain = [*maps, *self._rest(maps[-1])]
            features = self.classifier.pool(plain)
            styled = self.classifier.classify(self.classifier.pool(self._rest(randomize_style(maps[-1], generator)))).float()
            true_losses = functional.cross_entropy(self.classifier.classify(features[:count]).float(), chosen, reduction="none")
            task.append((true_losses + functional.cross_entropy(styled[:count], chosen, reduction="none")) / 2)
            if len(more):
                # Without dropout: what is asked for shall not be noisy
                consistency = style_consistency(styled[count:], self.classifier.head(features[count:].detach()))
            known = kinds[members] != PSEUDO
            if self.config.loss_prediction == "joint" and int(known.sum()) >= 2:
                scores = self.loss_prediction([stage[:count][known].detach() for stage in plain]).float()
                ranking.append(ranking_loss(scores, true_losses[known], self.config.ranking_margin))
        return torch.cat(task).mean(), torch.stack(ranking or [torch.zeros_like(consistency)]).mean(), consistency

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Take one step; everything random in it depends on the seed and the step alone."""
        images, labels, kinds, unlabelled = batch
        step = self.seed * 1_000_003 + self.global_step
        torch.manual_seed(step)
        generator = torch.Generator().manual_seed(step)
        changed = self.change(torch.cat([images, unlabelled]).cpu(), generator).to(images.device)
        changed = changed.contiguous(memory_format=memory_format(self.config))
        task, ranking, consistency = self.losses(changed[: len(images)], labels, kinds, changed[len(images) :], generator)
        shown = {"loss": task, "ranking": ranking, "consistency": consistency}
        self.log_dict(shown, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return task + self.config.loss_weight * ranking + self.weight * consistency

    def configure_optimizers(self) -> Any:
        """Return AdamW with a warm-up and a cosine to zero, as in training."""
        optimizer = adamw([self.classifier, self.loss_prediction], self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, self.config.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Pairs(Dataset[Batch]):
    """Batches by the indices of their labelled and of their unlabelled images; pseudo-labelled ones follow those with a label."""

    def __init__(self, material: Material, pseudo: PseudoLabels, target: str) -> None:
        self.material = material
        self.pseudo = pseudo
        self.labels = torch.from_numpy(np.concatenate([material.labels, pseudo.labels]))
        kinds = [LABELLED if domain == target else SOURCE for domain in material.domains]
        self.kinds = torch.tensor(kinds + [PSEUDO] * len(pseudo.labels), dtype=torch.int64)

    def __getitem__(self, pair: tuple[list[int], list[int]]) -> Batch:
        labelled, unlabelled = pair
        edge = len(self.material.labels)
        images = torch.stack([
            self.material.labelled[index] if index < edge else self.material.target[self.pseudo.indices[index - edge]]
            for index in labelled
        ])  # fmt: skip
        chosen = torch.tensor(labelled)
        return images, self.labels[chosen], self.kinds[chosen], self.material.target[torch.tensor(unlabelled)]


class _PairBatches(Sampler[tuple[list[int], list[int]]]):
    """Labelled images, every domain's every class as often as every other and pseudo-labels as a domain; and unlabelled ones."""

    def __init__(self, material: Material, pseudo: PseudoLabels, config: RunConfig, seed: int) -> None:
        groups = [*zip(material.domains, material.labels.tolist(), strict=True), *(("", int(label)) for label in pseudo.labels)]
        steps, size = config.steps_per_epoch, config.batch_size
        self.labelled = BalancedBatches(groups, steps, size, seed)
        self.unlabelled = BalancedBatches([("", 0)] * len(material.target), steps, size, seed + 1_000_003)

    def set_epoch(self, epoch: int) -> None:
        self.labelled.set_epoch(epoch)
        self.unlabelled.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.labelled)

    def __iter__(self) -> Iterator[tuple[list[int], list[int]]]:
        return zip(self.labelled, self.unlabelled, strict=True)


def batches(material: Material, pseudo: PseudoLabels, config: RunConfig, seed: int) -> DataLoader[Batch]:
    """Return the batches of a training: labelled, pseudo-labelled and unlabelled images, in an order that the seed decides."""
    # As the sampler, not the batch sampler: Lightning tells only the former which epoch it is.
    pairs = _Pairs(material, pseudo, settings_of(config).domain)
    return DataLoader(pairs, sampler=_PairBatches(material, pseudo, config, seed), batch_size=None)
