"""Other libraries that train sparse autoencoders, each through its own step: what the benchmarks compare with.

None is needed to use visae. An adapter builds a library's dictionary and returns one step as that library's trainer
takes it: forward, loss, backward, clipping and projection where it has them, optimiser, schedule; no model, no log.
"""

import io
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from visae.train.bench import Size
from visae.train.config import schedule

L0_COEFFICIENT = 0.12
"""Of SAELens' jumprelu: leaves about 16 codes on the planted dictionary of `visae bench quality`."""
L0_WARMUP = 2 / 3
"""Share of the steps over which jumprelu's penalty rises: the longer, the more features SAELens finds there."""
GROUPS = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the nested groups, those of visae's own `matryoshka`."""


@dataclass(frozen=True)
class Plan:
    """How a peer trains.

    Attributes:
        lr: peak learning rate; None leaves rate and optimiser to the library.
        steps: of the whole run.
        warmup: steps over which the rate rises.
        decay: steps, the last ones, over which it falls to 0.
        dead_after: steps without firing after which a latent is dead; None leaves this to the library.
        autocast: whether products are made in bf16.
        seed: of the weights.
    """

    lr: float | None = None
    steps: int = 10_000
    warmup: int = 500
    decay: int = 2000
    dead_after: int | None = None
    autocast: bool = False
    seed: int = 0

    def given(self, **names: Any) -> dict[str, Any]:
        """The arguments that are not None."""
        return {name: value for name, value in names.items() if value is not None}


@dataclass(frozen=True)
class Coder:
    """A trained dictionary by its library's path of inference.

    Attributes:
        encode: raw tokens `[n, d]` to dense codes `[n, F]`.
        decode: dense codes back to raw tokens.
        directions: `[F, d]`, what one unit of each code adds to a token.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    directions: Tensor


@dataclass(frozen=True)
class Learner:
    """A dictionary in training.

    Attributes:
        step: takes one batch `[batch, d]`.
        coder: the dictionary as it is now.
        optimiser: holds the moments.
    """

    step: Callable[[Tensor], None]
    coder: Callable[[], Coder]
    optimiser: Any


@dataclass(frozen=True)
class Peer:
    """Another library.

    Attributes:
        name: of its distribution.
        module: that it is imported as.
        kinds: of dictionary that it has, in visae's names.
        build: makes a learner.
    """

    name: str
    module: str
    kinds: tuple[str, ...]
    build: Callable[[Size, Plan], Learner]

    def learner(self, size: Size, plan: Plan) -> Learner:
        """A new dictionary of this library, its weights drawn from the plan's seed."""
        with torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()):
            torch.manual_seed(plan.seed)
            return self.build(size, plan)

    @property
    def version(self) -> str:
        """Of the installed distribution."""
        return version(self.name)


def _amp(plan: Plan) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16) if plan.autocast else nullcontext()


def _sae_lens(size: Size, plan: Plan) -> Learner:
    """SAELens: `SAETrainer.step`; coded by what `save_inference_model` leaves on disk."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig

    options: dict[str, tuple[str, dict[str, Any]]] = {
        "topk": ("TopK", {"k": size.k}),
        "batch_topk": ("BatchTopK", {"k": size.k}),
        "matryoshka": (
            "MatryoshkaBatchTopK",
            {"k": size.k, "matryoshka_widths": [round(e * size.n_latents) for e in accumulate(GROUPS)]},
        ),
        "jumprelu": ("JumpReLU", {"l0_coefficient": L0_COEFFICIENT, "l0_warm_up_steps": round(L0_WARMUP * plan.steps)}),
    }
    name, own = options[size.kind]
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=size.d, d_sae=size.n_latents, device="cpu", **own)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    settings = SAETrainerConfig(
        total_training_samples=plan.steps * size.batch,
        train_batch_size_samples=size.batch,
        lr_warm_up_steps=plan.warmup,
        lr_decay_steps=plan.decay,
        lr_end=0.0,
        autocast=plan.autocast,
        **plan.given(lr=plan.lr, dead_feature_window=plan.dead_after),
    )
    trainer = sae_lens.SAETrainer(settings, sae, data_provider=iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    def coder() -> Coder:
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            saved = sae_lens.SAE.load_from_disk(folder)
        return Coder(saved.encode, saved.decode, saved.W_dec.detach())

    return Learner(step, coder, trainer.optimizer)


def _dictionary_learning(size: Size, plan: Plan) -> Learner:
    """dictionary_learning: the trainers' `update`; its autocast is off on CPUs, so ours goes around it."""
    from dictionary_learning.trainers import batch_top_k, jumprelu, matryoshka_batch_top_k, top_k

    short = plan.given(  # its thresholds settle in thousands of steps
        threshold_start_step=plan.dead_after and plan.steps // 2, threshold_beta=plan.dead_after and 0.99
    )
    options: dict[str, tuple[Any, dict[str, Any]]] = {
        "topk": (top_k.TopKTrainer, {"k": size.k, **short}),
        "batch_topk": (batch_top_k.BatchTopKTrainer, {"k": size.k, **short}),
        "matryoshka": (
            matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
            {"k": size.k, "group_fractions": list(GROUPS), **short},
        ),
        "jumprelu": (
            jumprelu.JumpReluTrainer,
            {
                "target_l0": size.k,
                "sparsity_warmup_steps": round(L0_WARMUP * plan.steps),
                "bandwidth": 0.05,
                "sparsity_penalty": 10.0,
            },
        ),
    }
    maker, own = options[size.kind]
    trainer = maker(
        steps=plan.steps,
        activation_dim=size.d,
        dict_size=size.n_latents,
        layer=0,
        lm_name="none",
        device="cpu",
        warmup_steps=plan.warmup,
        decay_start=plan.steps - plan.decay,
        **own,
        **plan.given(lr=plan.lr),
    )
    if plan.dead_after is not None:
        trainer.dead_feature_threshold = plan.dead_after * size.batch
    taken = iter(range(plan.steps))

    def step(x: Tensor) -> None:
        with _amp(plan):
            trainer.update(next(taken), x)

    def coder() -> Coder:
        atoms = trainer.ae.W_dec if hasattr(trainer.ae, "W_dec") else trainer.ae.decoder.weight.T
        return Coder(trainer.ae.encode, trainer.ae.decode, atoms.detach())

    return Learner(step, coder, trainer.optimizer)


def _sparsify(size: Size, plan: Plan) -> Learner:
    """sparsify: what `Trainer.fit` and its hook do with a batch, which no function of its own does without a model."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    sae = SparseCoder(size.d, SparseCoderConfig(num_latents=size.n_latents, k=size.k))
    optimiser: Any
    if plan.lr is None:
        optimiser = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=5e-3 / (size.n_latents / 2**14) ** 0.5), 0.95)
        optimiser.train()
    else:
        optimiser = torch.optim.Adam(sae.parameters(), lr=plan.lr)
    alpha = 0.0 if plan.dead_after is None else 1 / 32
    idle, taken = torch.zeros(size.n_latents, dtype=torch.int64), 0

    def step(x: Tensor) -> None:
        nonlocal taken
        if taken == 0:
            sae.b_dec.data = x.mean(0)
        if plan.lr is not None:
            rate = schedule(taken, plan.steps, plan.warmup / plan.steps, plan.decay / plan.steps)
            optimiser.param_groups[0]["lr"] = plan.lr * rate
        sae.set_decoder_norm_to_unit_norm()
        dead = idle > (plan.dead_after or 0) * size.batch if alpha else None
        with _amp(plan):
            out = sae(x=x, y=x, dead_mask=dead, total_variance=(x - x.mean(0)).square().sum())
        (out.fvu + alpha * out.auxk_loss).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        idle.add_(x.shape[0])[out.latent_indices.flatten()] = 0
        taken += 1

    def coder() -> Coder:
        sae.set_decoder_norm_to_unit_norm()

        def encode(x: Tensor) -> Tensor:
            values, indices, _ = sae.encode(x)
            return torch.zeros(x.shape[0], size.n_latents).scatter(1, indices, values)

        def decode(z: Tensor) -> Tensor:
            values, indices = z.topk(size.k, dim=1)
            return sae.decode(values, indices)

        return Coder(encode, decode, sae.W_dec.detach())

    return Learner(step, coder, optimiser)


def _overcomplete(size: Size, plan: Plan) -> Learner:
    """overcomplete: `train_sae` on one batch; data are centred and scaled by hand, as it has no bias for that."""
    from overcomplete import sae as library
    from overcomplete.sae.jump_sae import heaviside
    from overcomplete.sae.train import train_sae, train_sae_amp

    options: dict[str, tuple[Any, dict[str, Any]]] = {
        "topk": (library.TopKSAE, {"top_k": size.k}),
        "batch_topk": (library.BatchTopKSAE, {"top_k": size.k * size.batch}),
        "jumprelu": (library.JumpSAE, {"bandwidth": 0.05}),
    }
    maker, own = options[size.kind]
    sae = maker(size.d, size.n_latents, **own)
    optimiser = torch.optim.Adam(sae.parameters(), lr=plan.lr or 5e-4)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: schedule(t, plan.steps, plan.warmup / plan.steps, plan.decay / plan.steps)
    )
    train = train_sae_amp if plan.autocast else train_sae
    norm: list[Tensor] = []

    def criterion(x: Tensor, recon: Tensor, pre: Tensor, _codes: Tensor, _atoms: Tensor) -> Tensor:
        loss = (x - recon).square().mean()
        if size.kind == "jumprelu":
            ones = heaviside(pre, sae.thresholds.exp(), sae.kernel_fn, sae.bandwidth)
            loss = loss + 0.01 * ones.sum(1).mean()
        return loss

    def step(x: Tensor) -> None:
        if not norm:
            norm.extend([x.mean(0), x.var(0).mean().rsqrt()])
        batch = (x - norm[0]) * norm[1]
        train(sae, [batch], criterion, optimiser, rates, nb_epochs=1, monitoring=0, device="cpu")

    def coder() -> Coder:
        sae.eval()  # `train_sae` goes back
        return Coder(
            lambda x: sae.encode((x - norm[0]) * norm[1])[1],
            lambda z: sae.decode(z) / norm[1] + norm[0],
            sae.get_dictionary().detach() / norm[1],
        )

    return Learner(step, coder, optimiser)


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("sae-lens", "sae_lens", ("topk", "batch_topk", "matryoshka", "jumprelu"), _sae_lens),
        Peer(
            "dictionary-learning",
            "dictionary_learning",
            ("topk", "batch_topk", "matryoshka", "jumprelu"),
            _dictionary_learning,
        ),
        Peer("eai-sparsify", "sparsify", ("topk",), _sparsify),
        Peer("overcomplete", "overcomplete", ("topk", "batch_topk", "jumprelu"), _overcomplete),
    )
}
"""Distribution -> peer."""
