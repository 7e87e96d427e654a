"""New weights for dead latents, for kinds whose objective does not revive them."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from visae.ops import share, unit_rows
from visae.sae.decoders import Free
from visae.sae.dictionary import Losses
from visae.sae.encoders import Linear
from visae.train.callbacks import Callback

if TYPE_CHECKING:
    from visae.train.trainer import Trainer

SHARE = 0.2
"""Length of a new encoder row, as a share of the mean length of the rows of live latents."""


class Resample(Callback):
    """Dead latents start anew at tokens that are explained badly (Bricken et al. 2023, "Towards monosemanticity").

    Every so many steps, for the dead latents (see `Trainer.dead_window`; as many as the batch has rows, those silent
    longest first): tokens are drawn from the last batch without replacement, with probability in proportion to their
    squared error `|u - r|^2` (the paper takes the square of the loss). The atom becomes the token less the decoder's
    bias, of length 1; the encoder's row the same at 0.2 of the mean length of live rows; the encoder's bias 0; what the
    activation has per latent its start (`Activation.restart`). Adam's moments of all of them become 0, and the count
    of silent samples too. Never during the last `decay` of the run, which would not suffice to learn from it.

    Args:
        every: steps between.
    """

    name = "resample"

    def __init__(self, every: int):
        self.every, self.resampled = every, 0

    def settings(self) -> dict[str, Any]:
        """See `Callback.settings`."""
        return {"every": self.every}

    def attach(self, trainer: "Trainer") -> None:
        """See `Callback.attach`."""
        sae = trainer.sae
        own_rows = isinstance(sae.encoder, Linear) and isinstance(sae.decoder, Free)
        if not own_rows or sae.activation.rule() is not None:
            raise ValueError(
                f"dead latents of kind {sae.kind!r} cannot be resampled: that is for dense activations (ReLU, gates, "
                "JumpReLU) whose latents have an encoder row and an atom each; leave resample_every out"
            )

    def after_step(self, trainer: "Trainer", losses: Losses) -> None:
        """See `Callback.after_step`."""
        if trainer.step % self.every == 0 and trainer.step <= (1 - trainer.config.decay) * trainer.steps:
            self.resampled += self.resample(trainer, losses)

    def logged(self, _trainer: "Trainer", _losses: Losses, metrics: dict[str, Any]) -> None:
        """Writes how many latents were resampled since the last line."""
        metrics["resampled"], self.resampled = self.resampled, 0

    @torch.no_grad()
    def resample(self, trainer: "Trainer", losses: Losses) -> int:
        """Resamples now; returns the number of latents."""
        sae, batch = trainer.sae, trainer.last
        assert batch is not None
        u, silent, everyone = sae.normalise(batch), sae.samples_since_fired, share().rows
        error = everyone.cat((u - losses.recon).square().sum(1).double())
        u = everyone.cat(u)
        dead = (silent >= trainer.dead_window).nonzero()[:, 0]
        room = min(dead.numel(), int((error > 0).sum()))
        if room == 0 or dead.numel() == sae.n_latents:
            return 0
        dead = dead[silent[dead].argsort(descending=True, stable=True)[:room]]
        tokens = torch.multinomial(error, room)
        self._renew(trainer, dead, u[tokens] - sae.decoder.bias)
        silent[dead] = 0
        return room

    @staticmethod
    def _renew(trainer: "Trainer", dead: Tensor, points: Tensor) -> None:
        sae = trainer.sae
        atoms = cast(Free, sae.decoder).weight
        size = torch.linalg.vecdot(points, points).sqrt()
        directions = points.clone()
        unit_rows(directions)
        live = torch.ones(sae.n_latents, dtype=torch.bool, device=dead.device).index_fill(0, dead, False)
        length = SHARE * torch.linalg.vector_norm(sae.W_enc[live], dim=1).mean()
        atoms[dead] = directions
        sae.W_enc[dead] = length * directions
        sae.b_enc[dead] = 0.0
        sae.activation.restart(dead, length * size)
        for name, parameter in trainer.optimiser.items():
            if parameter.shape[:1] == (sae.n_latents,):
                trainer.optimiser.first[name][dead] = 0.0
                trainer.optimiser.second[name][dead] = 0.0
        trainer.look_for_dead()

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        return {"resampled": self.resampled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        self.resampled = state["resampled"]
