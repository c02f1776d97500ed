"""RIDE: experts that are to be right and different, and their distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from .. import _checks
from .. import functional as F
from .._checks import ClassCounts, ExpertReduction, Experts, Reduction
from ..reference.diversity import over_experts
from ..schedules import Preset, check_preset, diversity_temperature, ldam_margin
from ._base import ClassWeight, Reweighted, _check_epoch, counts_of

KLDirection: TypeAlias = Literal["mean_first", "expert_first"]


class RIDELoss(Reweighted):
    r"""Margin cross-entropy of each expert, minus a share of the experts' diversity.

    .. math::
        L = \sum_k \Big[ b \, CE_w(z^k - s \, m_y e_y, y)
            + \lambda \bar T^2 \, KL(\mathrm{softmax}(\bar z / T) \Vert \mathrm{softmax}(z^k / T))
            \Big]

    with LDAM's margins m, and from `reweight_epoch` on class weights w and temperatures T a class;
    until then w = 1 and T = `base_diversity_temperature`. Without class counts there are neither
    margins nor weights nor temperatures.

    Two call forms: `loss(expert_logits, target)`, and the official code's
    `loss(output_logits, target, extra_info={"logits": expert_logits})`, whose `output_logits` are
    taken to be the experts' mean. `loss(output_logits, target)` of one tensor `[N, C]` is the
    official validation loss, plain cross-entropy. The positional arguments are the official ones
    in their order, and `_hook_before_epoch` is the official trainer's hook, so that swapping the
    import is the whole migration, with one exception: a diversity factor of 0 means no diversity,
    and not another loss (see `official_zero_switch`).

    Args:
        class_counts: training images a class, `[C]`.
        base_diversity_temperature: eta, the largest temperature.
        max_m: the largest margin, in cosine units.
        s: the scale that the logits already carry (30 for normalised heads).
        reweight: False never re-weights, whatever `reweight_epoch`.
        reweight_epoch: weights and temperatures are in force after this many epochs (160 for
            CIFAR, 80 for the others); -1 is never.
        base_loss_factor: b.
        additional_diversity_factor: lambda: -0.45 in the CIFAR configurations.
        reweight_factor: gamma of the temperatures (see `schedules.diversity_temperature`): 0.05
            for CIFAR, 0.02 for ImageNet-LT, 0.015 for iNaturalist.
        weight, beta: as `LDAMLoss`, for the class weights.
        preset: "official", or "paper": eqs. 2-4, which differ in what the next arguments choose
            one by one.
        expert_reduction: "sum" over the experts (official) or "mean" (paper).
        pairwise: diversity from each other, over ordered pairs / (K - 1) (paper), in place of
            diversity from the mean (official).
        direction: of the divergence from the mean, "mean_first" for KL(mean || expert) (official)
            or "expert_first" (paper).
        detach_mean: whether the mean is a constant (official) or not (paper) in it. It makes no
            difference for "mean_first", where the gradient through the mean is 0.
        t2: the factor T-bar^2 (official) or none (paper).
        temperature_mode: "class" divides each class's logit column by its temperature (official);
            "sample" each row by the temperature of its label, the other reading of the paper.
        temperature_form: "official" or "paper", see `schedules.diversity_temperature`.
        collaborative: cross-entropy of the mean logits in place of each expert's.
        official_zero_switch: True makes a diversity factor of 0 switch `collaborative` on, as the
            released code does.
        mean_over: the mean of a weighted cross-entropy is over the "weights" (official) or over
            the "samples".
        reduction: "mean", "sum", or "none" (`[N]`).
        cls_num_list: another name of `class_counts`.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021; code frank-xwang/RIDE-LongTailRecognition.
    """

    margin: Tensor | None
    temperature: Tensor | None
    full_temperature: Tensor | None

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        base_diversity_temperature: float = 1.0,
        max_m: float = 0.5,
        s: float = 30.0,
        reweight: bool = True,
        reweight_epoch: int = -1,
        base_loss_factor: float = 1.0,
        additional_diversity_factor: float = -0.2,
        reweight_factor: float = 0.05,
        *,
        weight: ClassWeight = "effective_number",
        beta: float = 0.9999,
        preset: Preset = "official",
        expert_reduction: ExpertReduction | None = None,
        pairwise: bool | None = None,
        direction: KLDirection | None = None,
        detach_mean: bool | None = None,
        t2: bool | float | None = None,
        temperature_mode: Literal["class", "sample"] = "class",
        temperature_form: Preset | None = None,
        collaborative: bool = False,
        official_zero_switch: bool = False,
        mean_over: Literal["weights", "samples"] = "weights",
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        name = "RIDELoss"
        counts = counts_of(name, class_counts, cls_num_list)
        check_preset(name, preset)
        official = preset == "official"
        if reweight_epoch != -1:
            _check_epoch(name, "reweight_epoch", reweight_epoch)
        reweighted = counts is not None and reweight and reweight_epoch != -1
        super().__init__(
            counts,
            weight if reweighted else None,
            reweight_epoch if reweighted and weight is not None else None,
            beta,
            reduction,
        )
        self.reweight_epoch = reweight_epoch if reweighted else None
        self.base_diversity_temperature = _checks.positive(
            name, "base_diversity_temperature", base_diversity_temperature
        )
        self.base_loss_factor = _checks.number(name, "base_loss_factor", base_loss_factor)
        self.additional_diversity_factor = _checks.number(
            name, "additional_diversity_factor", additional_diversity_factor
        )
        default_reduction: ExpertReduction = "sum" if official else "mean"
        self.expert_reduction = expert_reduction or default_reduction
        _checks.one_of(name, "expert_reduction", self.expert_reduction, "sum", "mean")
        self.pairwise = not official if pairwise is None else pairwise
        default_direction: KLDirection = "mean_first" if official else "expert_first"
        self.direction = direction or default_direction
        _checks.one_of(name, "direction", self.direction, "mean_first", "expert_first")
        self.detach_mean = official if detach_mean is None else detach_mean
        self.t2 = official if t2 is None else t2
        self.temperature_mode = temperature_mode
        _checks.one_of(name, "temperature_mode", temperature_mode, "class", "sample")
        self.mean_over = mean_over
        _checks.one_of(name, "mean_over", mean_over, "weights", "samples")
        self.collaborative = collaborative or (
            official_zero_switch and additional_diversity_factor == 0
        )

        scale = _checks.positive(name, "s", s)
        self.register_buffer(
            "margin", None if counts is None else scale * ldam_margin(counts, max_m)
        )
        full = None
        if counts is not None and reweighted:
            full = diversity_temperature(
                counts,
                base_diversity_temperature,
                reweight_factor,
                preset=temperature_form or preset,
            )
        self.register_buffer("full_temperature", full)
        self.register_buffer("temperature", None if full is None else full.clone())
        # A number costs less than a vector of equal ones, so it is known which of both is in force.
        self._one_temperature = True
        self._set_temperature(reweighted and reweight_epoch == 0)

    def on_epoch_start(self, epoch: int) -> None:
        """Put the class weights and temperatures of this epoch (0-based) in force."""
        super().on_epoch_start(epoch)
        if self.reweight_epoch is not None:
            self._set_temperature(epoch >= self.reweight_epoch)

    def _hook_before_epoch(self, epoch: int) -> None:
        """The official trainer's hook, whose first epoch is 1."""
        self.on_epoch_start(epoch - 1)

    def _set_temperature(self, reweighted: bool) -> None:
        self._one_temperature = not reweighted
        if self.temperature is None or self.full_temperature is None:
            return
        if reweighted:
            self.temperature.copy_(self.full_temperature)
        else:
            self.temperature.fill_(self.base_diversity_temperature)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.temperature is not None:
            equal = self.temperature == self.base_diversity_temperature
            self._one_temperature = bool(equal.all())

    def forward(
        self,
        output_logits: Tensor | Experts,
        target: Tensor,
        extra_info: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The loss of K experts; of one tensor `[N, C]` alone, its cross-entropy.

        Args:
            output_logits: K tensors `[N, C]` or one `[K, N, C]`; or `[N, C]`, the mean logits.
            target: class indices int64 `[N]`.
            extra_info: holds the experts' logits under "logits", where the first argument is
                their mean.
        """
        experts = experts_of("RIDELoss", output_logits, extra_info)
        if experts is None:
            assert isinstance(output_logits, Tensor)
            return F.adjusted_cross_entropy(output_logits, target, reduction=self.reduction)
        temperature = self._temperature(target)
        factor = self._one_pass_factor(temperature)
        if factor is not None:
            loss = self._classification(experts, target, temperature, factor)
            return loss if self.base_loss_factor == 1 else self.base_loss_factor * loss
        loss = self.additional_diversity_factor * self._diversity(experts, temperature)
        if self.base_loss_factor == 0:
            return loss
        return loss + self.base_loss_factor * self._classification(experts, target, temperature, 0)

    def _one_pass_factor(self, temperature: float | Tensor) -> float | None:
        """The diversity factor with which one call of `F.ride_loss`, times b, is the whole loss."""
        if self.additional_diversity_factor == 0:
            return 0.0
        if self.base_loss_factor == 0 or not self._is_plain_diversity():
            return None
        factor = self.additional_diversity_factor / self.base_loss_factor
        if self.t2 is True:
            return factor
        if isinstance(temperature, Tensor):  # whose square ride_loss brings along
            return None
        return factor * (self.t2 or float(self.t2 is False)) / temperature**2

    def _is_plain_diversity(self) -> bool:
        """Whether the diversity is that of `F.diversity_loss`, whose mean is a constant.

        So it may be: softmax(mean / T) is where sum_k KL(. || p^k) is least, so that no gradient
        would pass it.
        """
        return self.pairwise or self.direction == "mean_first"

    def _temperature(self, target: Tensor) -> float | Tensor:
        if self._one_temperature or self.temperature is None:
            return self.base_diversity_temperature
        if self.temperature_mode == "class":
            return self.temperature
        return self.temperature[target].unsqueeze(1)

    def _classification(
        self,
        experts: Experts,
        target: Tensor,
        temperature: float | Tensor,
        diversity_factor: float,
    ) -> Tensor:
        by_samples = self.reduction == "mean" and self.mean_over == "samples"
        loss = F.ride_loss(
            experts,
            target,
            margin=self.margin,
            class_weight=self.class_weight,
            temperature=temperature,
            diversity_factor=diversity_factor,
            collaborative=self.collaborative,
            pairwise=self.pairwise,
            expert_reduction=self.expert_reduction,
            reduction="sum" if by_samples else self.reduction,
        )
        return loss / len(target) if by_samples else loss

    def _diversity(self, experts: Experts, temperature: float | Tensor) -> Tensor:
        if self._is_plain_diversity():
            return F.diversity_loss(
                experts,
                temperature,
                pairwise=self.pairwise,
                t2=self.t2,
                expert_reduction=self.expert_reduction,
                reduction=self.reduction,
            )
        mean = _mean(experts)
        if self.detach_mean:
            mean = mean.detach()
        terms = [
            F.kd_loss(
                mean, z, temperature, t2=self.t2, detach_teacher=False, reduction=self.reduction
            )
            for z in experts
        ]
        return over_experts(terms, self.expert_reduction)

    def extra_repr(self) -> str:
        parts = [
            f"additional_diversity_factor={self.additional_diversity_factor:g}",
            f"base_diversity_temperature={self.base_diversity_temperature:g}",
            f"expert_reduction={self.expert_reduction!r}",
        ]
        if self.margin is not None:
            parts.append(f"margin=[{len(self.margin)}]")
        if self.reweight_epoch is not None:
            parts.append(f"reweight_epoch={self.reweight_epoch}")
        for flag in ("pairwise", "collaborative"):
            if getattr(self, flag):
                parts.append(f"{flag}=True")
        return ", ".join([*parts, f"reduction={self.reduction!r}"])


class RIDEDistillLoss(nn.Module):
    r"""`RIDELoss` plus distillation from a teacher of more experts.

    .. math::
        L = K \, [ r \, L_{RIDE} + d \, T^2 KL(\mathrm{softmax}(z^t / T) \Vert
            \mathrm{softmax}(\bar z / T)) ] \text{ (official)}, \quad
        L = r \, L_{RIDE} + \frac{d}{K} \sum_k T^2 KL(\mathrm{softmax}(z^t / T) \Vert
            \mathrm{softmax}(z^k / T)) \text{ (paper)}

    The official code adds both terms once for every expert; its student is the mean. Call forms:
    `loss(expert_logits, target, teacher)`, or the official
    `loss(student, target, teacher, extra_info={"logits": expert_logits})`, with the mean logits
    first; for validation `loss(student, target)`.

    Args:
        class_counts: training images a class, `[C]`.
        additional_distill_loss_factor: d.
        distill_temperature: T; 1.5 in the released configurations.
        ride_loss_factor: r.
        preset: "official" or "paper", of `RIDELoss` too.
        distill_on: the student is the "mean" of the logits (official) or each of the "experts"
            (paper; summed or averaged as `RIDELoss` does).
        repeat: K times (official) or once (paper).
        cls_num_list: another name of `class_counts`.
        ride: the other arguments of `RIDELoss`.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021, appendix A.2; code frank-xwang/RIDE-LongTailRecognition.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        additional_distill_loss_factor: float = 1.0,
        distill_temperature: float = 1.0,
        ride_loss_factor: float = 1.0,
        *,
        preset: Preset = "official",
        distill_on: Literal["mean", "experts"] | None = None,
        repeat: bool | None = None,
        cls_num_list: ClassCounts | None = None,
        **ride: Any,
    ) -> None:
        super().__init__()
        name = "RIDEDistillLoss"
        counts = counts_of(name, class_counts, cls_num_list)
        check_preset(name, preset)
        official = preset == "official"
        self.ride_loss = RIDELoss(counts, preset=preset, **ride)
        self.additional_distill_loss_factor = _checks.number(
            name, "additional_distill_loss_factor", additional_distill_loss_factor
        )
        self.distill_temperature = _checks.positive(
            name, "distill_temperature", distill_temperature
        )
        self.ride_loss_factor = _checks.number(name, "ride_loss_factor", ride_loss_factor)
        self.distill_on = distill_on or ("mean" if official else "experts")
        _checks.one_of(name, "distill_on", self.distill_on, "mean", "experts")
        self.repeat = official if repeat is None else repeat

    def on_epoch_start(self, epoch: int) -> None:
        """Put the class weights and temperatures of this epoch (0-based) in force."""
        self.ride_loss.on_epoch_start(epoch)

    def _hook_before_epoch(self, epoch: int) -> None:
        """The official trainer's hook, whose first epoch is 1."""
        self.on_epoch_start(epoch - 1)

    def forward(
        self,
        student: Tensor | Experts,
        target: Tensor,
        teacher: Tensor | None = None,
        extra_info: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The loss of K experts and a teacher; of one tensor `[N, C]` alone, its cross-entropy.

        Args:
            student: K tensors `[N, C]` or one `[K, N, C]`; or `[N, C]`, the mean logits.
            target: class indices int64 `[N]`.
            teacher: the teacher's (mean) logits `[N, C]`, a constant.
            extra_info: holds the experts' logits under "logits", where the first argument is
                their mean.
        """
        experts = experts_of("RIDEDistillLoss", student, extra_info)
        if experts is None:
            return self.ride_loss(student, target)  # type: ignore[no-any-return]
        if teacher is None:
            raise TypeError("`RIDEDistillLoss`: expected `teacher` logits [N, C], got None")
        loss = self.additional_distill_loss_factor * self._distillation(experts, teacher)
        if self.ride_loss_factor != 0:
            loss = loss + self.ride_loss_factor * self.ride_loss(experts, target)
        return len(experts) * loss if self.repeat else loss

    def _distillation(self, experts: Experts, teacher: Tensor) -> Tensor:
        students = [_mean(experts)] if self.distill_on == "mean" else experts
        terms = [
            F.kd_loss(z, teacher, self.distill_temperature, reduction=self.ride_loss.reduction)
            for z in students
        ]
        return over_experts(terms, self.ride_loss.expert_reduction)

    def extra_repr(self) -> str:
        return (
            f"distill_temperature={self.distill_temperature:g}, "
            f"distill_on={self.distill_on!r}, repeat={self.repeat}"
        )


def experts_of(
    loss: str, output_logits: Tensor | Experts, extra_info: Mapping[str, Any] | None
) -> Experts | None:
    """The experts' logits of either call form; None where there is one tensor `[N, C]` alone.

    One tensor `[K, N, C]` stays one: its views would be stacked again by autograd.
    """
    if extra_info is not None:
        if "logits" not in extra_info:
            raise ValueError(
                f"`{loss}`: expected `extra_info` to hold 'logits', got {sorted(extra_info)}"
            )
        return _checked(loss, "extra_info['logits']", extra_info["logits"])
    if isinstance(output_logits, Tensor) and output_logits.dim() == 2:
        return None
    return _checked(loss, "expert_logits", output_logits)


def _checked(loss: str, name: str, value: Any) -> Experts:
    if isinstance(value, Tensor):
        _checks.expert_logits(loss, name, value.detach())
        return value
    return _checks.expert_logits(loss, name, value)


def _mean(experts: Experts) -> Tensor:
    """`mean_logits` without a stack of K tensors."""
    dtype = _checks.compute_dtype(experts[0])
    if isinstance(experts, Tensor):
        return experts.mean(dim=0, dtype=dtype)
    total = experts[0].to(dtype)
    for z in experts[1:]:
        total = total + z
    return total / len(experts)
