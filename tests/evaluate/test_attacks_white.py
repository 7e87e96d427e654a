"""White box attacks on tiny pipelines: gradients against differences, planted words, budgets, nothing left behind."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import visae
from visae.data.sample import Prompt
from visae.edit import StrengthGate, ablate, active, edited, scale
from visae.erasers import METHODS, Request, Tools
from visae.evaluate.attacks import Arena, PromptWords, TextualInversion
from visae.evaluate.attacks.calls import Noised, asked
from visae.evaluate.attacks.tokens import FreeVectors, WordChoice, simplex
from visae.evaluate.attacks.words import Words
from visae.evaluate.preserved import clean_latents

GIVEN = {"steps": 3, "guidance": 2.0}
STAR = ("shape", "star")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", params=["sd", "pixart-alpha"])
def tiny(request, tiny_pipelines):
    row = tiny_pipelines.PIPELINES[request.param]
    return visae.wrap(tiny_pipelines.build(request.param), image_size=row.size, **row.options), row.block


def never(pictures):
    return {"shape": ["nothing"] * len(pictures)}


def arena_of(model, erasure=nullcontext, judge=never):
    return Arena(model, erasure, STAR, {"judge": judge}, GIVEN)


@pytest.fixture(scope="module")
def editing(dictionary):
    """Function from a model, a site and edits to an erasure."""

    def made(model, site, *edits):
        sae = dictionary(model.site(site).d)
        return lambda: edited(model, sae, site, *edits)

    return made


def weights_swapped(model):
    """An erasure that exchanges weights without a hook, as fine-tuned ones do."""
    module = next(m for n, m in model.module.named_modules() if n.endswith("attn2.to_v"))
    other = torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(5))

    @contextmanager
    def swap():
        before = module.weight.data
        module.weight.data = other
        try:
            yield
        finally:
            module.weight.data = before

    return swap


def state(model):
    """Everything that an attack could leave behind."""
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.module.named_modules()
    ]  # fmt: skip
    grads = [p.grad is None and p.requires_grad for p in model.module.parameters()]
    weights = [p.detach().clone() for p in model.module.parameters()]
    own = [sorted(vars(part)) for part in (model.pipe.scheduler, model.pipe)]
    return hooks, grads, own, weights


def check_untouched(model, before):
    after = state(model)
    assert after[:3] == before[:3]
    assert all(torch.equal(a, b) for a, b in zip(after[3], before[3], strict=True))
    assert not model._clocks
    assert torch.is_grad_enabled()


@pytest.fixture(scope="module")
def at(tiny):
    model, _ = tiny
    clean = clean_latents(model, ["a red star"], [3], GIVEN)
    return Noised(clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), 0.4)


@pytest.mark.parametrize("kind", ["edit", "mask", "weights", "none"])
def test_gradients_lead_through_the_erasure_and_equal_differences(tiny, at, kind, editing):
    model, site = tiny
    erasures = {
        "edit": editing(model, site, scale(range(12), -15.0)),
        "mask": editing(model, site, scale(range(12), -15.0).where(active(0.5))),
        "weights": weights_swapped(model),
        "none": nullcontext,
    }
    attack = TextualInversion(tokens=2, template="{adv} {prompt}")
    arena, words = arena_of(model, erasures[kind]), Words(model)
    mark = words.unused(["red star"])
    marked = (mark, attack.text("red star", f"{mark} {mark}"))
    variable = FreeVectors(words, 2, torch.Generator().manual_seed(0))
    before = state(model)
    loss, (gradient,) = attack.gradients(arena, words, marked, variable, at)
    plain, _ = attack.gradients(replace(arena, erasure=nullcontext), words, marked, variable, at)
    check_untouched(model, before)
    assert (loss == plain) == (kind == "none")
    if kind == "mask":  # hard where it is, soft in its derivative: no differences to compare with
        assert gradient.abs().sum() > 0
        return

    def moved(by):
        start = variable.parameters[0]
        variable.parameters = [(start.detach() + by).requires_grad_()]
        found = attack.gradients(arena, words, marked, variable, at)[0]
        variable.parameters = [start]
        return found

    along = gradient / gradient.norm()
    step = 2e-2
    slope = (moved(step * along) - moved(-step * along)) / (2 * step)
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


def test_what_the_denoiser_is_asked_is_what_it_says_in_a_run(tiny):
    model, _ = tiny
    calls, steps = [], []

    def note(module, args, kwargs, out):
        calls.append((args[0] if args else kwargs["hidden_states"], out[0].clone()))

    handle = getattr(model.pipe, model.denoiser.name).register_forward_hook(note, with_kwargs=True)
    with model.clock(after=steps.append):
        model.generate(["a red star"], [3], output_type="latent", **GIVEN)
    handle.remove()
    for number in (0, 2):
        (sample, out), step = calls[number], steps[number]
        row = step.branch.index("cond")
        noise = sample[row : row + 1] * (1 + step.sigma**2) ** 0.5 / step.sigma
        at = Noised(torch.zeros_like(noise), noise, (step.index + 0.5) / step.count)
        with torch.no_grad():
            said = asked(model, ["a red star"], GIVEN, at)
        assert said.sigma == step.sigma
        torch.testing.assert_close(said.output, out[row : row + 1, :4], rtol=1e-4, atol=1e-5)


def test_planted_words_are_found_by_gradients(tiny_pipelines):
    model = visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))
    attack = PromptWords(tokens=2, rounds=1, iterations=60, lr=0.05, template="{adv}", goal="plain")
    given, found = {"steps": 4, "guidance": 2.0}, []
    model.generate(["star"], [0], **given)
    before = state(model)

    class Watching(Arena):
        def draw(self, prompts):
            found.extend(one.text for one in prompts)
            return super().draw(prompts)

    arena = Watching(model, nullcontext, STAR, {"judge": never}, given)
    result = attack.run(arena, [Prompt("star red", 3, "")])
    check_untouched(model, before)
    assert len(Words(model).words) ** 2 > 10 * 60  # so that drawing at random would hardly find them
    assert found[-1] == "star red"
    assert result.spent == {"gradients": 60, "pictures": 1}


def test_words_are_found_among_many_where_their_vectors_are_the_target():
    table = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    words = SimpleNamespace(words=[f"w{i}" for i in range(300)], vectors=[table])
    choice = WordChoice(words, 3, torch.Generator().manual_seed(1))
    optimiser = PromptWords(lr=0.01).optimiser(choice)
    for _ in range(500):
        loss = (choice.vectors()[0] - table[[17, 4, 250]]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        choice.stepped(float(loss.detach()))
    assert choice.best()[0] == "w17 w4 w250"
    assert torch.equal(choice.best()[1][0], table[[17, 4, 250]])
    torch.testing.assert_close(choice.chances.sum(1), torch.ones(3))


def test_budgets_are_kept_and_the_first_success_ends_an_attack(tiny, editing):
    model, site = tiny
    prompts = [Prompt("red star", 3, "a"), Prompt("blue star", 4, "b")]
    erasure = editing(model, site, ablate(range(12)).whether(StrengthGate(0.0)))
    before = state(model)
    attack = TextualInversion(tokens=1, rounds=3, iterations=2)
    result = attack.run(arena_of(model, erasure), prompts, "inversion")
    assert result.spent == {"gradients": 12, "pictures": 6}
    assert result.budget == {"gradients": 6, "pictures": 3, "tokens": 1}
    assert result.ua("judge").value == 1.0
    assert result.revived == ("", "")

    calls = []

    def third(pictures):
        calls.append(len(pictures))
        return {"shape": ["star" if len(calls) == 4 else "nothing"] * len(pictures)}

    result = attack.run(arena_of(model, erasure, third), prompts)
    check_untouched(model, before)
    assert calls == [2, 2, 1, 1, 1, 1, 1]
    assert result.after["judge"].tolist() == [True, False]
    assert not result.before["judge"].any()
    assert result.spent == {"gradients": 4 + 6, "pictures": 2 + 3}
    assert result.revived == ("<learnt>", "")
    assert result.ua("judge").value == 0.5
    told = result.to_dict()
    assert (told["adaptive"], told["box"], told["budget"]["gradients"]) == (True, "white", 6)
    assert "TextualInversion (white box, adaptive)" in str(result)


def test_an_attack_on_the_plain_pipeline_is_labelled_and_never_enters_the_erasure_for_gradients(tiny):
    model, _ = tiny
    entered = []

    @contextmanager
    def erasure():
        entered.append(1)
        yield

    for adaptive, times in ((False, 1 + 2), (True, 1 + 2 + 4)):
        entered.clear()
        attack = PromptWords(tokens=1, rounds=2, iterations=2, adaptive=adaptive)
        result = attack.run(arena_of(model, erasure), [Prompt("red star", 3, "")], "words")
        assert len(entered) == times
        assert result.adaptive is adaptive
        assert ("not adaptive" in str(result)) is not adaptive


def test_what_cuts_gradients_is_told(tiny):
    model, site = tiny

    def stop(*_):
        torch.set_grad_enabled(False)

    @contextmanager
    def cut():
        handle = model.module.get_submodule(site).register_forward_hook(stop)
        try:
            yield
        finally:
            handle.remove()

    with pytest.raises(ValueError, match="no gradient leads"):
        PromptWords(1, 1, 1).run(arena_of(model, cut), [Prompt("red star", 3, "")])
    assert torch.is_grad_enabled()


def test_words_are_one_token_each_and_prompts_that_are_too_long_are_refused(tiny):
    model, _ = tiny
    words = Words(model)
    assert {"star", "red", "square"} <= set(words.words)
    for reader in words.readers:
        assert all(len(ids) == 1 for ids in reader.ids(words.words))
    mark = words.unused(["a red star"])
    assert mark not in ["a", "red", "star"]
    with pytest.raises(ValueError, match="longer than the text encoder"):
        PromptWords(40, 1, 1).run(arena_of(model), [Prompt("red star", 3, "")])


def test_classes_have_no_tokens(tiny_pipelines):
    model = visae.wrap(tiny_pipelines.build("dit"), image_size=(16, 16))
    with pytest.raises(ValueError, match="takes no texts"):
        Words(model)
    with pytest.raises(ValueError, match=r"needs \{adv\}"):
        PromptWords(template="{prompt}")


def test_the_nearest_distribution_is_nearer_than_any_other():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 7, generator=g)
    found = simplex(rows)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    assert (found >= 0).all()
    others = torch.distributions.Dirichlet(torch.ones(7)).sample((500,))
    far = (others[:, None] - rows).norm(dim=-1)
    assert ((found - rows).norm(dim=-1) <= far.min(0).values).all()
    inside = torch.tensor([[0.2, 0.5, 0.3]])
    torch.testing.assert_close(simplex(inside), inside)
    assert np.isclose(float(simplex(torch.tensor([[9.0, 0.0]]))[0, 0]), 1.0)


@pytest.mark.parametrize("method", ["negative_prompt", "sld", "uce"])
def test_attacks_lead_through_erasures_that_are_no_edits(tiny, method):
    model, _ = tiny
    erasure = METHODS[method].build(model, Request("star", ("star",), ("red square",), given=GIVEN), Tools())
    arena, words = arena_of(model, erasure), Words(model)
    clean = clean_latents(model, ["red star"], [3], GIVEN)
    at = Noised(clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), 0.9)
    mark = words.unused(["red star"])
    variable, before = FreeVectors(words, 1, torch.Generator().manual_seed(0)), state(model)
    loss, (gradient,) = TextualInversion(tokens=1).gradients(arena, words, (mark, mark), variable, at)
    plain, _ = TextualInversion(tokens=1, adaptive=False).gradients(arena, words, (mark, mark), variable, at)
    check_untouched(model, before)
    assert gradient.abs().sum() > 0
    if method != "sld":  # which changes next to nothing where tiny random weights hardly heed their prompt
        assert (loss == plain) == (method == "negative_prompt")  # that one leaves the prompt's own branch as it is
