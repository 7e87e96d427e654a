"""Small dictionaries and tokens for the tests of this folder."""

import pytest
import torch

from visae.sae import initialise, kind_options, kinds, make_sae, normalisers

D, F = 16, 64
torch.set_num_threads(1)  # tensors this small only lose time between threads


OVER = ("abs_topk", "adaptive_k", "batch_topk", "feature_choice", "gated", "jumprelu", "p_anneal", "relu_l1")
FORMS = {
    **{kind: (kind, {}) for kind in kinds()},
    **{f"archetypal {name}": ("archetypal", {"activation": name}) for name in OVER},
    "relu_l1 tanh": ("relu_l1", {"penalty": "tanh"}),
    "topk multi": ("topk", {"multi": 0.125}),
    "feature_choice aux": ("feature_choice", {"aux": 0.5}),
}
"""Kinds as they are, and with options that bring parts of their own: name to kind and options."""


def make_small(kind, **options):
    return make_sae(kind, D, F, **({"k": 4} if "k" in kind_options(kind) else {}), **options)


def draw_tokens(n=600, d=D, seed=5):
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(0))
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) @ mixing + 7


def shake(parameters, size, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(size * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p))


@pytest.fixture(params=kinds())
def kind(request):
    return request.param


@pytest.fixture(params=FORMS)
def form(request):
    """Name, kind and options, see `FORMS`."""
    return request.param, *FORMS[request.param]


@pytest.fixture(params=normalisers())
def normaliser(request):
    return request.param


@pytest.fixture
def small():
    """Function from a kind (and options) to a dictionary of 64 latents for tokens of length 16, without weights."""
    return make_small


@pytest.fixture
def tokens():
    """Function to correlated tokens `[n, 16]` with a large mean."""
    return draw_tokens


@pytest.fixture
def started(bring):
    """Function from a kind to a dictionary in training mode, away from a start where gradients vanish by accident."""

    def make(kind, dtype=torch.float64, **options):
        sae = make_small(kind, **options)
        initialise(sae, bring(sae, draw_tokens()))
        sae = sae.to(dtype).train()
        shake(sae.parameters(), 0.05, 3)
        return sae

    return make


@pytest.fixture
def gradients(bring):
    """Function to the gradient of one term of the loss (or all) with respect to every parameter, by name."""

    def find(sae, x, ops, dead, term=None):
        torch.manual_seed(11)  # of the noise that some kinds draw while training
        losses = sae.losses(bring(sae, x), ops, dead=dead)
        loss = losses.total if term is None else losses.terms[term]
        names, params = zip(*sae.named_parameters(), strict=True)
        found = torch.autograd.grad(loss, params, allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, params, found, strict=True)}

    return find


@pytest.fixture
def sae(form, bring):
    """A dictionary of every form, ready for inference."""
    _, kind, options = form
    made = make_small(kind, **options)
    initialise(made, bring(made, draw_tokens()))
    shake(made.modulation.parameters(), 0.1, 4)  # it starts as none at all
    made.calibrate([bring(made, draw_tokens(seed=6))])
    return made.eval()
