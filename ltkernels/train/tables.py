"""The keys of a run, a dataclass a table: what they are called, their defaults and their meaning.

`config.py` makes a `Config` of files and of the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "CbeConfig",
    "Config",
    "ContrastConfig",
    "DataConfig",
    "EclConfig",
    "LfmeConfig",
    "LossConfig",
    "ModelConfig",
    "NclConfig",
    "OptimizerConfig",
    "RideConfig",
    "RoutingConfig",
    "ScheduleConfig",
    "SubsetsConfig",
    "TextConfig",
    "ViewsConfig",
]


@dataclass(frozen=True)
class DataConfig:
    """Which long-tailed training set is drawn, and what of it is held out."""

    root: str = ""
    """Folder that holds the data set's files; empty: the usual places."""
    imbalance: float | None = None
    """Largest class count over the smallest; None: the data set's own (wordnet-lt: not drawn)."""
    kind: Literal["exp", "step"] = "exp"
    """Profile of the class counts."""
    draw: Literal["ltkernels", "official"] = "ltkernels"
    """``official`` draws the very indices of the LDAM-DRW / RIDE / BKD code."""
    seed: int = 0
    """Seed of the long-tailed draw, apart from the seed of the training."""
    holdout: float = 0.0
    """Fraction of each class held out of training before counting, as validation images."""
    holdout_min: int = 0
    """Images held out of each class where the fraction gives fewer; a class keeps one at least."""
    augment: bool = True
    """Whether training images are augmented."""
    rotation: float = 0.0
    """Largest angle in degrees by which training images are turned; RIDE's code has 15.
    ECL and NCL turn the ``dataset`` view only."""
    sampling: Literal["instance", "class"] = "instance"
    """``class``: an epoch has every class equally often. For methods that do not sample themselves:
    a baseline under uniform class sampling is a member of CBE's ensemble. A loss that corrects the
    prior of the counts (balanced softmax, class weights) then corrects one that is not there."""
    image_size: int = 224
    """Side of the squares that image files are cropped to; of other data sets no key."""
    crop: float = 0.08
    """Smallest area of a random crop of an image file in training, relative to the image's."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How image files are scaled; all five papers' codes are bilinear."""
    jitter: float | None = None
    """Strength of brightness, contrast and saturation of image files; None: the data set's own."""


@dataclass(frozen=True)
class TextConfig:
    """How texts become token ids; of data sets of texts."""

    max_length: int = 64
    """Words of a text that are kept."""
    min_count: int = 1
    """How often a word must occur in the training texts to have an id of its own."""
    max_words: int | None = None
    """Words with an id, the most frequent ones; None: all."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = "resnet32"
    """One of ``ltkernels.nn``'s models."""
    expert_width: float = 0.75
    """Width of an expert's own stages relative to the single network's."""
    shared_stem: bool = False
    """ECL and NCL: experts on a shared stem; NCL's code, and so both by default, has K networks."""
    head: Literal["linear", "cosine"] = "linear"
    """``cosine``: logits are ``scale`` times the cosine of feature and class weight."""
    scale: float = 30.0
    """Scale of a cosine head."""
    width: int | None = None
    """Channels of the stem; None: the network's own."""
    stem_stride: int | None = None
    """Stride of the stem of a small-image network; None: 1."""
    weights: str = ""
    """File of torchvision's weights (.pth, .safetensors) to start from, its classifier left out."""
    embedding_width: int = 300
    """TextCNN: width of a word's vector."""
    embeddings: str = ""
    """TextCNN: file of word vectors to begin with, in GloVe's text format; empty: random ones."""
    static_embeddings: bool = False
    """TextCNN: word vectors do not learn."""
    filter_widths: tuple[int, ...] = (3, 4, 5)
    """TextCNN: words that a filter sees."""
    feature_maps: int = 100
    """TextCNN: filters of each width."""
    dropout: float = 0.5
    """TextCNN: probability with which a feature is dropped before the classifier."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Stochastic gradient descent; learning rate and weight decay stand at the top level."""

    momentum: float = 0.9
    nesterov: bool = False


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate; positions are fractions of the run, so that ``epochs`` scales them."""

    kind: Literal["step", "cosine"] = "step"
    warmup: float = 0.025
    """Fraction of the run over which the rate rises linearly to ``lr``."""
    milestones: tuple[float, ...] = (0.8, 0.9)
    """Fractions of the run at which a step schedule changes the rate."""
    factors: tuple[float, ...] = (0.01, 0.0001)
    """Factor of ``lr`` from each milestone on (not cumulative)."""
    per_epoch: bool = False
    """Hold the rate constant inside an epoch, as the official codes do."""


@dataclass(frozen=True)
class LossConfig:
    """Constants of the losses; a method names those it reads."""

    alpha: float = 1.0
    """Weight of a distillation term."""
    beta: float = 0.9999
    """Effective-number constant of the class weights."""
    deferred: float = 0.0
    """Fraction of the run after which class weights are on (DRW); 0: from the start."""
    max_margin: float = 0.5
    """Largest margin of LDAM, the one of the rarest class."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss."""
    label_smoothing: float = 0.0
    """Label smoothing of plain cross-entropy."""
    tau: float = 1.0
    """Strength of a logit adjustment."""
    weighted_ce: bool = False
    """Weight the cross-entropy of knowledge distillation by class, as BKD's released "KD" does."""


@dataclass(frozen=True)
class RideConfig:
    """RIDE's first stage: what the experts learn from, and from whom."""

    individual: Literal["ldam", "ce", "balanced_softmax"] = "ldam"
    """Loss of each expert by itself."""
    collaborative: bool = False
    """One loss of the experts' mean logits in place of each expert's own."""
    diversity: float = -0.45
    """Factor of the divergence, below 0 to reward diversity; 0: none."""
    pairwise: bool = False
    """Divergence of the experts from each other (paper), not from their mean (released code)."""
    temperature: float = 1.0
    """Largest temperature of the divergence."""
    gamma: float = 0.05
    """Spread of the temperatures over the classes from the deferred epoch on."""
    distill: bool = False
    """Distil from a RIDE model of ``teacher_experts`` experts (``teacher``, or trained first)."""
    teacher_experts: int = 6
    distill_factor: float = 1.0
    distill_temperature: float = 1.5
    preset: Literal["official", "paper"] = "official"
    """Sum or mean over the experts, factor of the divergence, what the teacher teaches."""


@dataclass(frozen=True)
class RoutingConfig:
    """RIDE's second stage: routers, trained on frozen experts; and how they are used."""

    epochs: int = 0
    """0: no routers, every image is shown to every expert."""
    batch_size: int = 512
    lr: float = 0.01
    weight_decay: float = 5e-4
    z: int = 30
    """How many of the largest logits a router sees; at most the number of classes is taken."""
    hidden: int = 16
    shared: bool = True
    """One second layer for all routers."""
    pos_weight: float = 100.0
    """Weight of the images that need another expert."""
    threshold: float = 0.5
    """Probability above which an image is shown to the next expert."""


@dataclass(frozen=True)
class SubsetsConfig:
    """Subsets of the classes by their number of training images; each has an expert."""

    thresholds: tuple[int, ...] = (20, 100)
    """Rising numbers of images that part the subsets: one more subset than thresholds."""
    rule: Literal["liu", "kang", "sharma", "wang", "overlap"] = "liu"
    """Where a class goes whose count is a threshold; see ``ltkernels.data.class_subsets``."""
    index: int = 0
    """Subset of a ``subset_expert``; 0: the one of the classes with most images."""


@dataclass(frozen=True)
class LfmeConfig:
    """LFME's student. ``none`` takes what the preset says."""

    preset: Literal["paper", "official"] = "paper"
    """The paper, or its released code; see ``ltkernels.methods.lfme.PRESETS``."""
    sampling: Literal["class", "instance"] = "class"
    """Every class equally often, or every image once an epoch."""
    images_per_class: int = 4
    """Successive images of a class in class sampling."""
    distill: bool = True
    """Distil from the experts (KD)."""
    expert_selection: bool = True
    """Weigh each expert by how far the student is behind it (SpES); without: weight 1."""
    instance_selection: bool = True
    """Weigh each image by the expert's confidence, rising with the epochs (SpIS); without: 1."""
    validation: Literal["auto", "holdout", "train", "test"] = "auto"
    """Images on which student and experts are compared; ``auto``: those held out of training
    (``data.holdout``) where there are any, else the training images. ``test`` leaks the test set
    and is labelled so."""
    alpha: float | None = None
    """Share of the expert's accuracy up to which it teaches with weight 1."""
    clamp: bool = True
    """Keep the weight of an expert that the student has passed at 0; without: negative."""
    schedule: Literal["linear", "convex", "concave"] = "linear"
    """Growth of the images' weights."""
    printed: bool = False
    """The concave growth as printed, from 0 to 1 - v."""
    instance_start: Literal["paper", "official"] | None = None
    """Weights before the first epoch: confidence times the subset's ratio, or the confidence
    brought from that ratio to 1 within each class."""
    instance_span: float | None = None
    """Fraction of the run after which the weights are 1."""
    instance_clip: bool | None = None
    """Keep the weights at 1 from then on; without: they go on growing."""
    instance_weight_on: Literal["loss", "logits"] | None = None
    """What an image's weight multiplies: its cross-entropy, or its logits in both losses."""
    classification: Literal["ce", "focal"] = "ce"
    """Loss of the labels; ``focal`` with ``loss.focal_gamma``."""
    t2: bool = False
    """Factor T^2 of the distillation."""
    expert_epochs: float | None = None
    """Epochs of an expert, relative to the student's."""
    expert_schedule: Literal["same", "cosine"] | None = None
    """Learning rate of an expert: the student's course, or a cosine."""
    expert_batch: Literal["same", "halved"] | None = None
    """Batch size of an expert: the student's, or halved from subset to subset."""


@dataclass(frozen=True)
class CbeConfig:
    """Class-balanced experts. A list of one value an expert, from the classes with most images on;
    its last value stands for the experts that follow."""

    mechanism: Literal["reject", "exposure"] = "reject"
    """What an expert learns about images of other classes: a class of its own for them, or to be
    undecided about them (outlier exposure)."""
    open_ratio: tuple[int, ...] = (16,)
    """Images of its classes for each image of the reject class."""
    reject_correction: Literal["half", "ratio", "test_prior", "none"] | float = "half"
    """What is added to the reject logit after training: the released code, the paper, the share of
    the other classes in a balanced test set, or a number; see ``fusion.reject_correction``."""
    redraw: bool = False
    """Draw the images of other classes anew in every epoch; the released code draws once."""
    exposure: float = 0.5
    """Weight of the term on outliers."""
    outlier_ratio: int = 1
    """Images of its classes for each outlier, with outlier exposure."""
    learnable: tuple[int, ...] = (-1, 2)
    """Blocks that learn, counted from the classifier: 1 is the classifier alone, 2 with the last
    stage; -1: all. The others stay as the baseline left them."""
    frozen_statistics: bool = True
    """Batch-norm statistics of frozen blocks stand still, too; the released code lets them move."""
    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.05
    weight_decay: float = 5e-4
    fusion: Literal["kl_min", "soft_vote", "expert_selection", "stacking", "joint_calibration"] = (
        "joint_calibration"
    )
    """Strategy of the run's own predictions; the report has all five."""
    balanced_fit: bool = True
    """Fit the fusion as on a balanced set: every class of the validation images weighs the same."""
    calibrate: Literal["class", "expert"] = "class"
    """Joint calibration of every logit by itself, or of an expert's logits together."""
    calibration_decay: float = 5e-4
    """L2 penalty that draws scales to 1 and shifts to 0."""


@dataclass(frozen=True)
class ViewsConfig:
    """ECL and NCL: the two augmented views of an image."""

    first: Literal["dataset", "autoaugment", "randaugment", "contrast"] = "dataset"
    """What the experts classify and the query is of: the data set's own augmentation;
    ``autoaugment`` with the CIFAR policy in it; ``randaugment`` for photographs."""
    second: Literal["dataset", "autoaugment", "randaugment", "contrast"] = "contrast"
    """What the key is of: MoCo v2's augmentation. Both views of an image file start from one random
    crop of it."""
    cutout: int | None = None
    """Side of the square blanked in the first view; None: what the data set's augmentation does."""
    crop: float = 0.2
    """Smallest area of MoCo v2's crops."""


@dataclass(frozen=True)
class ContrastConfig:
    """ECL and NCL: the momentum-contrast branch. NCL's values; ECL names none of them."""

    width: int = 64
    """Width of queries and keys."""
    hidden: int | None = None
    """Hidden layer of the projection; None: as wide as the feature (MoCo v2, NCL); 0: none."""
    queue: int = 1024
    """Keys kept of each expert."""
    temperature: float = 0.2
    momentum: float = 0.999
    """Of the moving average that makes the keys; of encoder and key head, both. NCL's code leaves
    the key head as it was drawn, and a query then has to meet a random projection."""
    buffers: Literal["averaged", "copied"] = "averaged"
    """Batch-norm statistics of the momentum encoder; they count with ``statistics = running``."""
    statistics: Literal["batch", "running"] = "batch"
    """What the momentum encoder normalises with: its batch's statistics, as MoCo and NCL."""


@dataclass(frozen=True)
class EclConfig:
    """ECL. There is no official code: what the paper leaves open is a key with its reason."""

    alpha: float = 0.6
    """Factor of both distillations, eq. 11."""
    beta: float = 1.0
    """Factor of the contrast, eq. 11; 0: no contrast (CPT off in Table III)."""
    transfer: Literal["balanced", "uniform", "none"] = "balanced"
    """Distillation between logits with the weights of eqs. 5-6, without weights, or none at all
    (BKT off in Table III: the paper does not say which of the two that means)."""
    feature_transfer: bool = True
    """Distillation between features, eq. 8 (FLD in Table III)."""
    temperature: float = 1.0
    """Of both distillations."""
    ratio: Literal["rhs", "lhs"] = "rhs"
    """Side of eq. 6, whose two sides are reciprocal; the text describes the right one."""
    unbiased: bool = True
    """The deviation of a row of logits is over C - 1; eq. 5 does not say."""
    detach: bool = True
    """The weights have no gradient: the paper wants the reference head to learn from its own loss
    only."""
    normalize_mean: bool = False
    """Bring the weights to a mean of 1, so that they do not change the strength of the term; not
    in the paper, but nothing there bounds them."""
    eps: float = 1e-6
    """Least deviation and least divisor of the weights; the paper has none."""
    kd_logits: Literal["raw", "adjusted"] = "raw"
    """Distil z (paper) or z + tau log prior (NCL)."""
    direction: Literal["as_printed", "teacher_first"] = "as_printed"
    """KL(student || teacher) as eq. 7 prints, or the usual KL(teacher || student)."""
    detach_teacher: bool = False
    """Whether a teacher is a constant. Not said; in NCL, ECL's base, it is none."""
    feature_reduction: Literal["mean", "sum"] = "mean"
    """Eq. 8 lacks the 1/N that eq. 7 has; "sum" is as printed, N times stronger."""
    expert_reduction: Literal["mean", "sum"] = "mean"
    """Of the cross-entropies, eq. 10; "sum" as NCL."""
    contrast_expert_reduction: Literal["sum", "mean"] = "sum"
    """Of the contrast, eq. 9."""
    contrast_reduction: Literal["mean", "sum"] = "mean"
    """Eq. 9 prints no 1/N; "mean" as NCL."""


@dataclass(frozen=True)
class NclConfig:
    """NCL; the defaults are the released code's."""

    hard: int = 0
    """Hard categories of an image; 0: 3/10 of the classes (the released configurations)."""
    ce: float = 1.0
    """Factor of the cross-entropies on all categories."""
    hard_ce: float = 1.0
    """Factor of the cross-entropies on the hard categories."""
    transfer: float = 0.6
    """Factor of the mutual distillation on all categories."""
    hard_transfer: float = 0.6
    """Factor of the mutual distillation on the hard categories."""
    masking: Literal["zero", "exclude"] = "zero"
    """Easy categories get the logit 0 (released code: they stay in the softmax), or leave it."""
    contrast: float = 1.0
    """Factor of the contrast; 0: none, as in the released ImageNet-LT and iNaturalist files."""
    expert_reduction: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True)
class Config:
    """One training run."""

    method: str = "ce"
    """One of ``ltkernels.methods.METHODS``."""
    dataset: str = "glyph-lt"
    recipe: str = "default"
    """Variant of the data set's recipe."""
    seed: int = 0
    """Everything random in training follows from this number and the position in the run."""
    device: str = "auto"
    """``auto`` takes CUDA where there is one."""
    threads: int = 0
    """CPU threads of this process; 0: one for every core. Last digits depend on it."""
    workers: int = 0
    """Loader processes of data sets read from disk; data sets held in memory need none."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Autocast type; ``auto``: bf16 on GPUs that have it, else fp16; off on a CPU."""
    channels_last: bool = True
    epochs: int = 200
    batch_size: int = 128
    """Images a step, over all processes."""
    lr: float = 0.1
    weight_decay: float = 2e-4
    temperature: float = 2.0
    """Distillation temperature."""
    experts: int = 3
    """Experts of a multi-expert method."""
    mixup_alpha: float = 0.0
    """Beta(alpha, alpha) mixup of images and labels; 0: none."""
    teacher: str = ""
    """Folder of the run that teaches; empty: trained first, in ``OUT/teacher``."""
    start: str = ""
    """Folder of the run whose network a method starts from; empty: trained first, where needed."""
    start_experts: int = 0
    """Experts of the network that ``start`` gives; 0: a single network. Found, not set."""
    expert_runs: str = ""
    """Folder of the runs of subset experts, ``expert0`` and on; those it lacks are trained there.
    Empty: the run's own folder."""
    shot_rule: Literal["kang", "liu", "sharma", "wang"] = "kang"
    """Which classes are many, medium and few."""
    selection: Literal["last", "best_val", "best_test"] = "last"
    """Which epoch is reported; ``best_test`` leaks the test set and is labelled so."""
    flip_test: bool = False
    """ECL and NCL: predict the mean of an image and its mirror image; said in the result."""
    eval_every: int = 0
    """Epochs between evaluations; 0: about ten evaluations a run. The last epoch is always one."""
    keep_logits: bool = True
    """Keep the logits of test and validation images in the run's folder (4 bytes an image and
    class), so that ``evaluate``, ``compare`` and ``fuse`` need not predict again."""
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ride: RideConfig = field(default_factory=RideConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    subsets: SubsetsConfig = field(default_factory=SubsetsConfig)
    lfme: LfmeConfig = field(default_factory=LfmeConfig)
    cbe: CbeConfig = field(default_factory=CbeConfig)
    ecl: EclConfig = field(default_factory=EclConfig)
    ncl: NclConfig = field(default_factory=NclConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)

    @property
    def deferred_epoch(self) -> int:
        """First 0-based epoch with class weights: ``round(loss.deferred * epochs)``."""
        return round(self.loss.deferred * self.epochs)
