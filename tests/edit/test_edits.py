"""Laws of edits on every pipeline of the table, and what each change does to codes, against dense arithmetic."""

import math

import pytest
import torch

import visae
from visae.edit import (
    CHANGES,
    ErrorGate,
    ShareGate,
    StrengthGate,
    ablate,
    above_mean,
    active,
    add,
    at_levels,
    clamp,
    edited,
    keep_only,
    negative_of_mean,
    on_tokens,
    reconstruct,
    replace_tokens,
    scale,
    swap,
    transport,
)
from visae.edit.apply import EditedSite, edited_sites
from visae.edit.gates import Memory
from visae.edit.moment import Moment
from visae.levels import at_level
from visae.taps import tap

STEPS = 2
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="class")
def row(tiny_pipelines, pipeline_name):
    return tiny_pipelines.PIPELINES[pipeline_name]


@pytest.fixture(scope="class")
def model(tiny_pipelines, pipeline_name, row):
    return visae.wrap(tiny_pipelines.build(pipeline_name), name=pipeline_name, image_size=row.size, **row.options)


@pytest.fixture(scope="class")
def make(row, model):
    def generate(prompts=row.prompts, seeds=(3, 4)):
        return torch.as_tensor(model.generate(prompts, seeds, steps=STEPS, output_type="np"))

    return generate


class TestEveryPipeline:
    def test_edits_that_change_nothing_leave_every_bit(self, row, model, make, dictionary):
        sae, plain = dictionary(model.site(row.block).d), make()
        nothing = [
            scale([1, 2], 1.0), ablate([3]).times(0.0), ablate([4]).whether(ErrorGate()), ablate([5]).who(samples=[]),
            ablate([6]).when(steps=(9, 12)), ablate([7]).where(on_tokens(torch.zeros(row.grid))),
        ]  # fmt: skip
        with edited(model, sae, row.block):
            assert torch.equal(make(), plain)
        with edited(model, sae, row.block, *nothing):
            assert torch.equal(make(), plain)
        with edited(model, sae, row.block, add([1], 30.0)):
            assert not torch.equal(make(), plain)
        assert torch.equal(make(), plain)

    def test_only_the_chosen_images_steps_and_branches_change(self, row, model, make, dictionary):
        sae, plain, seen = dictionary(model.site(row.block).d), make(), []
        with edited(model, sae, row.block, add([1], 30.0).who(samples=[1])):
            images = make()
        assert torch.equal(images[0], plain[0])
        assert not torch.equal(images[1], plain[1])
        if any("uncond" in branches for branches in row.branches):
            keep = lambda step: seen.append((step.index, step.branch, taken[model.site(row.block).name]))  # noqa: E731
            both = []
            for edits in ((), (add([1], 30.0).who("cond").when(steps=(0, 1)),)):
                seen.clear()
                with edited(model, sae, row.block, *edits), tap(model, row.block) as taken, model.clock(after=keep):
                    make()
                both.append(list(seen))
            for (index, branch, before), (_, _, after) in zip(*both, strict=True):
                changed = (before != after).flatten(1).any(1).tolist()
                if index == 0:
                    assert changed == [name != "uncond" for name in branch]


@pytest.fixture(scope="module")
def moment(dictionary):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4, 6, 8, generator=g)
    return Moment(dictionary(8), x, ("uncond", "uncond", "cond", "cond"), torch.tensor([0, 1, 0, 1]), 2.0, 1, 1, (2, 3))


def dense(moment, change):
    """`x' - x` where `change` maps dense codes `[4, 6, F]` to new ones, by the dictionary's own decoder."""
    codes = moment.sae.encode(moment.x.flatten(0, 1)).to_dense().view(4, 6, -1)
    return (change(codes.clone()) - codes) @ moment.sae.directions()


def put(codes, latents, values):
    codes[..., latents] = values
    return codes


def memory(images=2):
    made = Memory()
    made.begin(images)
    return made


LEVELS, MEANS = torch.tensor([1.0, 4.0]), torch.tensor([[0.5, 2.0], [1.5, 4.0]])
CASES = {
    "ablate": (ablate([2, 5]), lambda f: put(f, [2, 5], 0.0)),
    "scale": (scale([2, 5], (-8.0, 0.5)), lambda f: put(f, [2, 5], f[..., [2, 5]] * torch.tensor([-8.0, 0.5]))),
    "clamp": (clamp([2, 5], low=0.3, high=0.4), lambda f: put(f, [2, 5], f[..., [2, 5]].clamp(0.3, 0.4))),
    "negative_of_mean": (
        negative_of_mean([2, 5], LEVELS, MEANS), lambda f: put(f, [2, 5], -f[..., [2, 5]] * torch.tensor([1.0, 3.0])),
    ),
    "add": (add([2, 5], (1.0, -2.0)), lambda f: put(f, [2, 5], f[..., [2, 5]] + torch.tensor([1.0, -2.0]))),
    "swap": (swap([2], [5]), lambda f: put(f, [2, 5], f[..., [5, 2]])),
    "transport": (transport([2, 5], source=0), lambda f: put(f, [2, 5], f[[0, 0, 2, 2]][..., [2, 5]])),
    "keep_only": (keep_only([2, 5]), lambda f: put(torch.zeros_like(f), [2, 5], f[..., [2, 5]])),
}  # fmt: skip


def test_every_change_has_a_case():
    assert CASES.keys() | {"replace", "reconstruct"} == set(CHANGES)


@pytest.mark.parametrize("name", CASES)
def test_a_change_is_the_difference_of_dense_codes_times_the_directions(name, moment):
    edit, change = CASES[name]
    torch.testing.assert_close(edit.delta(moment, memory()), dense(moment, change), rtol=1e-4, atol=1e-4)


def test_a_reconstruction_drops_what_the_dictionary_does_not_explain(moment):
    codes = moment.sae.encode(moment.x.flatten(0, 1))
    chosen = (codes.indices == 2) | (codes.indices == 5)
    wanted = moment.sae.decode(codes.with_values(torch.where(chosen, -8 * codes.values, codes.values)))
    found = moment.x + reconstruct([2, 5], -8.0).delta(moment, memory())
    torch.testing.assert_close(found, wanted.view_as(found), rtol=1e-4, atol=1e-4)


def test_per_token_normalisers_scale_what_a_code_adds(dictionary):
    sae = dictionary(8, normaliser="layer_norm")
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)) * 7
    moment = Moment(sae, x, ("none",), torch.tensor([0]))
    codes = sae.encode(x[0])
    chosen = int(codes.indices[0, 0])
    values = torch.where(codes.indices == chosen, 0.0, codes.values)
    expected = sae.decode(codes.with_values(values)) - sae.decode(codes)
    found = ablate([chosen]).delta(moment, memory(1))
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def test_tokens_with_the_concept_give_way_to_the_mean_of_the_others(moment):
    f = moment.values((2,))[..., 0]
    middle = float(f.detach().median())
    found = replace_tokens([2], middle).delta(moment, memory())
    for r in range(4):
        hit = f[r] > middle
        assert hit.sum() < 6
        torch.testing.assert_close((moment.x + found)[r][hit], moment.x[r][~hit].mean(0).expand(int(hit.sum()), 8))
        assert torch.equal(found[r][~hit], torch.zeros_like(found[r][~hit]))
    given = replace_tokens([2], middle, LEVELS, torch.stack([torch.zeros(8), torch.ones(8)])).delta(moment, memory())
    torch.testing.assert_close((moment.x + given)[f > middle], torch.full((int((f > middle).sum()), 8), 0.5))
    placed = torch.arange(9.0)[None, :, None].expand(1, 9, 8)  # more places than there are tokens
    given = replace_tokens([2], middle, torch.ones(1), placed).delta(moment, memory())
    torch.testing.assert_close((moment.x + given)[f > middle], placed[0, :6].expand(4, 6, 8)[f > middle])
    with pytest.raises(ValueError, match="knows what to put at 5 places, and there are 6"):
        replace_tokens([2], middle, torch.ones(1), placed[:, :5]).delta(moment, memory())


def test_places_multiply_and_reach_single_latents(moment):
    f, mask = moment.values((2, 5)), torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]])
    edit = ablate([2, 5]).where(
        above_mean(LEVELS, MEANS), on_tokens(mask), at_levels(LEVELS, torch.tensor([[True, True], [True, False]]))
    )
    wanted = -f * (f > torch.tensor([1.0, 3.0])) * mask.view(1, 6, 1)
    level = float(LEVELS[LEVELS.log().sub(math.log(2.0)).abs().argmin()])
    if level == 4.0:
        wanted[..., 1] = 0
    torch.testing.assert_close(edit.delta(moment, memory()), moment.decoded((2, 5), wanted), rtol=1e-4, atol=1e-5)
    where = (f[..., :1] > 0.2) | (f[..., 1:] > 0.7)
    near = ablate([2, 5]).where(active((0.2, 0.7))).delta(moment, memory())
    torch.testing.assert_close(near, moment.decoded((2, 5), -f * where), rtol=1e-4, atol=1e-5)


def test_strengths_concepts_and_signs_are_each_rows_own(moment):
    whole = ablate([2]).delta(moment, memory())
    found = ablate([2]).times([2.0, 0.0]).who("opposed").delta(moment, memory())
    factors = torch.tensor([-2.0, 0.0, 2.0, 0.0]).view(4, 1, 1)
    torch.testing.assert_close(found, whole * factors)
    cond = ablate([2]).who("cond").delta(moment, memory())
    torch.testing.assert_close(cond, whole * torch.tensor([0.0, 0.0, 1.0, 1.0]).view(4, 1, 1))
    assert ablate([2]).who(samples=[7]).delta(moment, memory()) is None


@pytest.mark.parametrize(
    ("gate", "score"),
    [
        (ErrorGate(), lambda _, delta: delta.square().mean((1, 2))),
        (ShareGate(above=4.0), lambda f, _: (f > 4.0).any(-1).float().mean(1)),
        (StrengthGate(weights=(1.0, 2.0)), lambda f, _: (f[..., 0] + 2 * f[..., 1]).amax(1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_gate_opens_for_images_above_its_threshold_in_all_their_rows(moment, gate, score):
    f = moment.values((2, 5))
    whole = ablate([2, 5]).delta(moment, memory())
    scores = score(f, whole)
    torch.testing.assert_close(gate.score(moment, (2, 5), whole), scores)
    per_image = torch.stack([scores[[0, 2]].max(), scores[[1, 3]].max()])
    assert per_image[0] != per_image[1]
    threshold = float(per_image.detach().mean())
    edit = ablate([2, 5]).whether(type(gate)(**{**vars(gate), "threshold": threshold}))
    told = memory()
    found = edit.delta(moment, told)
    opened = per_image > threshold
    assert told.open.tolist() == opened.tolist()
    torch.testing.assert_close(found, whole * opened[[0, 1, 0, 1]].view(4, 1, 1).float())


def test_a_gate_is_calibrated_to_a_share_of_false_positives():
    scores = list(range(100))
    for share in (0.0, 0.05, 0.5):
        gate = ErrorGate().calibrated(scores, share)
        assert sum(score > gate.threshold for score in scores) == round(100 * share)
    with pytest.raises(ValueError, match="at least one prompt"):
        ErrorGate().calibrated([])


def test_disjoint_edits_commute_and_several_sites_are_edited_at_once(tiny_pipelines, dictionary):
    model = visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))
    one, two = "unet.mid_block.attentions.0", "text_encoder.encoder.layers.1"
    saes = dictionary(model.site(one).d), dictionary(model.site(two).d, seed=1)
    a, b = scale([1, 2], -2.0), add([5], 3.0).who("cond")

    def images(*sites):
        with edited_sites(model, sites):
            return torch.as_tensor(model.generate(["a red square"], [0], steps=2, output_type="np"))

    assert torch.equal(images(EditedSite(saes[0], one, (a, b))), images(EditedSite(saes[0], one, (b, a))))
    both = images(EditedSite(saes[0], one, (a,)), EditedSite(saes[1], two, (b,)))
    assert not torch.equal(both, images(EditedSite(saes[0], one, (a,))))
    assert not torch.equal(both, images(EditedSite(saes[1], two, (b,))))
    with pytest.raises(ValueError, match="named twice"):
        images(EditedSite(saes[0], one, (a,)), EditedSite(saes[0], one, (b,)))
    with pytest.raises(ValueError, match="latent 24 is none of the dictionary's 0 to 23"):
        EditedSite(saes[0], one, (ablate([24]),))


def test_text_encoders_tell_the_prompt_from_the_negative_one(tiny_pipelines, dictionary):
    model = visae.wrap(tiny_pipelines.build("sdxl"))
    site = "text_encoder.encoder.layers.1"
    sae = dictionary(model.site(site).d)
    kept = []
    with edited(model, sae, site, add([1], 5.0).who("opposed")), tap(model, site) as taken, model.clock():
        original = model.pipe.text_encoder.forward
        model.pipe.text_encoder.forward = lambda *a, **k: (original(*a, **k), kept.append(taken[site].clone()))[0]
        try:
            model.generate(["a red square"], [0], steps=1, guidance=4.0, negative="grey")
        finally:
            del model.pipe.text_encoder.forward
    plain = []
    with tap(model, site) as taken:
        for text in ("a red square", "grey"):
            tokens = model.pipe.tokenizer(text, padding="max_length", max_length=12, return_tensors="pt")
            model.pipe.text_encoder(tokens.input_ids)
            plain.append(taken[site].clone())
    push = 5.0 * sae.directions()[1]
    torch.testing.assert_close(kept[0] - plain[0], push.expand_as(kept[0]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kept[1] - plain[1], -push.expand_as(kept[1]), rtol=1e-3, atol=1e-3)


def test_edits_are_differentiable(tiny_pipelines, dictionary):
    model = visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))
    site = "text_encoder.encoder.layers.1"
    sae = dictionary(model.site(site).d)
    tokens = model.pipe.tokenizer("a red square", return_tensors="pt").input_ids
    table = model.pipe.text_encoder.get_input_embeddings()
    vectors = table(tokens).detach().requires_grad_()
    with edited(model, sae, site, scale([1, 2, 3, 4], -3.0)):
        out = model.pipe.text_encoder(tokens.clone(), output_hidden_states=True).hidden_states[-2]
    assert out.grad_fn is not None
    x = torch.randn(1, 4, 8, requires_grad=True)
    moment = Moment(dictionary(8), x, ("none",), torch.tensor([0]))
    scale([1, 2, 3], -3.0).delta(moment, memory(1)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert vectors.grad is None


def test_tables_are_read_between_their_levels_in_log_sigma():
    table = torch.tensor([[0.0, 10.0], [2.0, 20.0], [4.0, 0.0]])
    levels = torch.tensor([4.0, 1.0, 16.0])
    torch.testing.assert_close(at_level(levels, table, 2.0), torch.tensor([1.0, 15.0]))
    torch.testing.assert_close(at_level(levels, table, 8.0), torch.tensor([2.0, 5.0]))
    torch.testing.assert_close(at_level(levels, table, 0.1), table[1])
    torch.testing.assert_close(at_level(levels, table, 99.0), table[2])
    torch.testing.assert_close(at_level(levels[:1], table[:1], 3.0), table[0])
