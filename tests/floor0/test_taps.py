"""The laws of taps on a small module whose every number can be computed by hand, and on torch's own attention."""

import copy

import pytest
import torch
from torch import nn

from visae.model import AdaptedModel, wrap
from visae.registry import UnknownName
from visae.taps import tap

D, HEADS = 24, 4


class Block(nn.Module):
    def __init__(self, batch_first: bool = True):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.attn = nn.MultiheadAttention(D, HEADS, batch_first=batch_first)
        self.mlp = nn.Sequential(nn.Linear(D, 32), nn.GELU(), nn.Linear(32, D))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class Toy(nn.Module):
    """Patches of 8 on images of 32 x 40, with a class and two register tokens; order and layout as asked."""

    def __init__(self, length_first: bool = False):
        super().__init__()
        self.patches = nn.Conv2d(3, D, 8, 8)
        self.cls_token, self.reg_token = nn.Parameter(torch.randn(1, 1, D)), nn.Parameter(torch.randn(1, 2, D))
        self.blocks = nn.ModuleList(Block(not length_first) for _ in range(3))
        self.head = nn.Linear(D, 5)
        self.unused = nn.Linear(2, 2)
        self.length_first = length_first

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x], 1)
        x = x.transpose(0, 1) if self.length_first else x
        for block in self.blocks:
            x = block(x)
        return self.head(x[0] if self.length_first else x[:, 0])


class InPlace(nn.Module):
    """A residual unit as convolutional networks write it: the shortcut is added and clipped in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        y += x
        return self.act(y)


@pytest.fixture
def batch():
    return torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=[False, True], ids=["NLC", "LNC"])
def model(request) -> AdaptedModel:
    torch.manual_seed(0)
    return wrap(Toy(request.param), image_size=(32, 40))


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


def heads_by_hand(attention: nn.MultiheadAttention, y: torch.Tensor) -> torch.Tensor:
    """softmax(q k' / sqrt d) v of every head, side by side, from the textbook formula; y is `[n, t, d]`."""
    n, t, d = y.shape
    q, k, v = (part.reshape(n, t, HEADS, d // HEADS).transpose(1, 2)
               for part in (y @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1))  # fmt: skip
    mixed = torch.softmax(q @ k.transpose(-1, -2) / (d // HEADS) ** 0.5, -1) @ v
    return mixed.transpose(1, 2).reshape(n, t, d)


def test_sites_know_tokens_grid_and_layout(model):
    site = model.site("blocks.1")
    assert site.token_kinds == ("cls", "reg", "reg", *["patch"] * 20)
    assert (site.grid, site.stride, site.d, site.prefix) == ((4, 5), (8, 8), D, ("cls", "reg", "reg"))
    assert site.layout == ("LNC" if model.module.length_first else "NLC")
    assert model.site("blocks.-1") == model.site("blocks.2")
    assert model.site("blocks.-2.delta") == model.site("blocks.1.delta")
    assert model.site("blocks.1.mlp.1").d == 32  # any module path that emits tokens


def test_a_site_may_be_named_by_path_and_the_activations_answer_to_either_name(model, batch):
    with torch.no_grad(), tap(model, "blocks.1.attn", "blocks.-1") as taken:
        model.forward(batch)
    assert list(taken) == ["blocks.1.attn_out", "blocks.2"]
    assert taken["blocks.1.attn"] is taken["blocks.1.attn_out"]
    assert taken["blocks.-1"] is taken["blocks.2"]
    with pytest.raises(UnknownName, match=r"tapped site 'blocks\.0'"):
        taken["blocks.0"]


@pytest.mark.parametrize("grad", [False, True], ids=["fused path", "open path"])
def test_heads_of_torch_attention_equal_the_textbook_formula(model, batch, grad):
    with torch.set_grad_enabled(grad), tap(model, "blocks.1.norm", "blocks.1.heads", "blocks.1.head.2") as taken:
        model.forward(batch)
    expected = heads_by_hand(model.module.blocks[1].attn, taken["blocks.1.norm"])
    torch.testing.assert_close(taken["blocks.1.heads"], expected, rtol=1e-4, atol=1e-5)
    size = D // HEADS
    assert torch.equal(taken["blocks.1.head.2"], taken["blocks.1.heads"][..., 2 * size : 3 * size])
    assert taken["blocks.1.heads"].requires_grad == grad


@pytest.mark.parametrize("grad", [False, True], ids=["fused path", "open path"])
def test_switching_one_head_off_takes_its_share_out_of_the_attention_output(model, batch, grad):
    attention = model.module.blocks[1].attn
    with torch.set_grad_enabled(grad), tap(model, "blocks.1.head.3", "blocks.1.attn_out") as plain:
        model.forward(batch)
    off = tap(model, "blocks.1.head.3", rewrite=torch.zeros_like)
    with torch.set_grad_enabled(grad), tap(model, "blocks.1.attn_out") as edited, off:
        model.forward(batch)
    share = plain["blocks.1.head.3"] @ attention.out_proj.weight[:, 18:24].T
    torch.testing.assert_close(edited["blocks.1.attn_out"], plain["blocks.1.attn_out"] - share, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True], ids=["fused path", "open path"])
def test_reading_and_identity_rewrites_of_every_site_leave_every_bit(model, batch, grad):
    with torch.set_grad_enabled(grad):
        plain = model.forward(batch)
        with tap(model, *model.sites()):
            read = model.forward(batch)
        with tap(model, *model.sites(), rewrite=lambda x: x.clone(memory_format=torch.contiguous_format)):
            rewritten = model.forward(batch)
    assert torch.equal(plain, read)
    assert torch.equal(plain, rewritten)


def test_a_delta_rewrite_changes_the_output_by_the_change_of_the_delta(model, batch):
    with torch.no_grad():
        with tap(model, "blocks.0", "blocks.0.delta", "blocks.0.input") as plain:
            model.forward(batch)
        with tap(model, "blocks.1.input") as edited, tap(model, "blocks.0.delta", rewrite=lambda x: x * 3):
            model.forward(batch)
    torch.testing.assert_close(plain["blocks.0.delta"], plain["blocks.0"] - plain["blocks.0.input"])
    torch.testing.assert_close(edited["blocks.1.input"], plain["blocks.0"] + 2 * plain["blocks.0.delta"])


def test_elements_that_a_delta_rewrite_leaves_keep_their_bits_negative_zero_included():
    class Negate(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1, bias=False)])

        def forward(self, x):
            return self.blocks[0](x)

    model = wrap(Negate(), image_size=8)
    nn.init.constant_(model.module.blocks[0].weight, -0.0)
    batch = torch.ones(1, 3, 8, 8)
    with torch.no_grad():
        plain = model.forward(batch)
        with tap(model, "blocks.0.delta", rewrite=lambda x: x):
            rewritten = model.forward(batch)
    assert torch.equal(plain.view(torch.int32), rewritten.view(torch.int32))


def test_bfloat16_sites_are_read_and_rewritten_in_their_own_type(model, batch):
    model.to(dtype=torch.bfloat16)
    with torch.no_grad():
        plain = model.forward(batch)
        with tap(model, *model.sites(), rewrite=lambda x: x.clone()) as taken:
            assert torch.equal(model.forward(batch), plain)
    assert {t.dtype for t in taken.values()} == {torch.bfloat16}


def test_gradients_reach_the_input_through_rewrites_of_every_kind(model, batch):
    names = ["blocks.0", "blocks.1.delta", "blocks.1.head.1", "blocks.2.mlp_out", "blocks.2.input"]
    batch = batch.clone().requires_grad_()
    scales = {name: torch.ones((), requires_grad=True) for name in names}  # an edit that changes nothing, yet
    with tap(model, *names, rewrite={name: lambda x, s=scale: x * s for name, scale in scales.items()}):
        out = model.forward(batch).square().sum()
    grads = torch.autograd.grad(out, [batch, *scales.values()])
    assert [float(g.abs().sum()) > 0 for g in grads] == [True] * 6


def test_what_the_model_overwrites_in_place_is_read_before_it_is_overwritten():
    model = wrap(InPlace(), image_size=(16, 24))
    module = model.module
    module.norm.running_mean += 0.3
    batch = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        with tap(model, "stem", "norm", "act", "act.input") as taken:
            model.forward(batch)
        stem = module.stem(batch)
        norm = module.norm(stem)
        expected = {"stem": stem, "norm": norm, "act.input": norm + stem, "act": (norm + stem).relu()}
    assert (model.site("norm").overwritten, model.site("stem").overwritten) == (True, False)
    for name, native in expected.items():
        torch.testing.assert_close(taken[name], native.flatten(2).transpose(1, 2))


def test_rewrites_run_before_hooks_that_were_there_already(model, batch):
    seen = []
    handle = model.module.blocks[0].register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad(), tap(model, "blocks.0", rewrite=torch.zeros_like):
        model.forward(batch)
    handle.remove()
    assert not seen[-1].any()


def test_no_hook_is_left_after_success_wrong_sites_and_exceptions(model, batch):
    every = list(model.sites())
    with torch.no_grad(), tap(model, *every):
        model.forward(batch)
    with pytest.raises(UnknownName), tap(model, *every, "blocks.7"):
        pass
    with pytest.raises(ZeroDivisionError), tap(model, *every):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="boom"), torch.no_grad(), tap(model, "blocks.0", rewrite=_boom):
        model.forward(batch)
    assert hooks(model) == 0
    assert model.module.blocks[0].attn.out_proj.weight.shape == (D, D)


def _boom(_):
    raise RuntimeError("boom")


def test_a_site_that_never_ran_is_an_error_on_leaving_unless_another_error_is_on_its_way(model):
    message = r"nothing was tapped at blocks\.0 \(module 'blocks\.0'\)"
    with pytest.raises(RuntimeError, match=message), tap(model, "blocks.0"):
        pass
    with pytest.raises(KeyError, match="mine"), tap(model, "blocks.0"):
        raise KeyError("mine")


@pytest.mark.parametrize(("bad", "message"), [
    (lambda x: x[:, 1:], r"must return \[2, 23, 24\] torch.float32 on cpu, got \[2, 22, 24\]"),
    (lambda x: x.double(), "got .* torch.float64"),
    (lambda _: None, "must return a tensor, got NoneType"),
])  # fmt: skip
def test_a_rewrite_that_returns_something_else_is_refused(model, batch, bad, message):
    with pytest.raises(ValueError, match=message), torch.no_grad(), tap(model, "blocks.0", rewrite=bad):
        model.forward(batch)


def test_errors_for_names_suggest_what_there_is(model):
    with pytest.raises(UnknownName, match=r"Unknown site 'block.1'. Did you mean 'blocks.1'"):
        model.site("block.1")
    with pytest.raises(UnknownName, match=r"Unknown site 'blocks\.-9'"):
        model.site("blocks.-9")
    with pytest.raises(ValueError, match="has heads 0 to 3, got 4"):
        model.site("blocks.1.head.4")
    with pytest.raises(ValueError, match="'unused' does not run"):
        model.site("unused")
    with (
        pytest.raises(UnknownName, match="needs its site among the tapped ones"),
        tap(model, "blocks.0", rewrite={"blocks.1": torch.zeros_like}),
    ):
        pass
    with pytest.raises(ValueError, match="at least one site"), tap(model):
        pass
    with pytest.raises(ValueError, match="no place on the image"):
        model.geometry("pooled")


def test_a_rewrite_per_site_may_use_any_name_of_the_site(model, batch):
    with (
        torch.no_grad(),
        tap(model, "blocks.2") as edited,
        tap(model, "blocks.-1.mlp_out", "blocks.-1.attn_out", rewrite={"blocks.-1.mlp_out": torch.zeros_like}) as parts,
    ):
        model.forward(batch)
    with torch.no_grad(), tap(model, "blocks.2.input") as plain:
        model.forward(batch)
    torch.testing.assert_close(edited["blocks.2"], plain["blocks.2.input"] + parts["blocks.2.attn_out"])


def test_a_site_from_a_card_finds_the_place_in_the_same_model_only(model):
    for name in ("blocks.1", "blocks.1.heads", "blocks.2.head.1", "blocks.1.mlp.1", "blocks.0.delta", "pooled"):
        site = model.site(name)
        assert model.site(type(site).from_dict(site.to_dict())) == site
    other = wrap(InPlace(), image_size=16)
    with pytest.raises(UnknownName, match="is of another model"):
        other.site(model.site("blocks.1"))
    wide = copy.deepcopy(model.site("blocks.1").to_dict()) | {"d": 99}
    with pytest.raises(ValueError, match=r"tokens of length 99, but module 'blocks\.1' of this model gives 24"):
        model.site(type(model.site("blocks.1")).from_dict(wide))


def test_compiled_and_scripted_models_are_refused_with_the_cure(batch):
    with pytest.raises(ValueError, match=r"model\._orig_mod"):
        wrap(torch.compile(Toy()), image_size=(32, 40))
    model = wrap(Toy(), image_size=(32, 40))
    model.module.blocks[1].compile()
    with pytest.raises(ValueError, match=r"blocks\.1 is compiled in place"), tap(model, "blocks.1.mlp"):
        pass
    with tap(model, "blocks.0"), torch.no_grad():  # another block is free
        model.module.blocks[0](torch.zeros(1, 23, D))
    with pytest.raises(ValueError, match="TorchScript"), pytest.warns(FutureWarning):
        wrap(torch.jit.trace(nn.Conv2d(3, 4, 8), batch), image_size=(32, 40))
