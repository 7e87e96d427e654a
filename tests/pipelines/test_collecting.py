"""Tokens of pipelines: equal to what plain hooks see, with their step, noise level and branch, and resumable."""

import numpy as np
import pytest
import torch
from PIL import Image

import visae
from visae.clock import CODES, noise_level
from visae.codes import CodeTable
from visae.data import Prompt, Sample, load_prompts
from visae.sae import Rows, initialise, make_sae
from visae.sites import to_tokens
from visae.store import Sampling, Store, StoreError, Stream, estimate, extract
from visae.store.noising import encoded
from visae.tokens import TokenPolicy

STEPS = 3
TEXTS = ["a red square", "blue star on grey", "a green circle", "a star", "red on blue", "grey circle"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]


def prompts_of(row, seeds=(3, 4)):
    return load_prompts([str(text) for text in row.prompts], seed=seeds[0])


@pytest.fixture(scope="class")
def row(tiny_pipelines, pipeline_name):
    return tiny_pipelines.PIPELINES[pipeline_name]


@pytest.fixture(scope="class")
def model(tiny_pipelines, pipeline_name):
    row = tiny_pipelines.PIPELINES[pipeline_name]
    return visae.wrap(tiny_pipelines.build(pipeline_name), name=pipeline_name, image_size=row.size, **row.options)


@pytest.fixture(scope="module")
def sd(tiny_pipelines):
    return visae.wrap(tiny_pipelines.build("sd"), name="sd", image_size=(16, 24))


SITE = "unet.mid_block.attentions.0"


def seen_by_plain_hooks(model, row, site):
    """Calls of the denoiser as (timestep index, tokens), by nothing but torch's own hooks and the pipeline."""
    module = model.module.get_submodule(site.path)
    found = []

    def note(_module, _args, out):
        native = out if isinstance(out, torch.Tensor) else out[site.index]
        found.append(to_tokens(native, site.layout).clone())

    handle = module.register_forward_hook(note)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    named = "class_labels" if isinstance(row.prompts[0], int) else "prompt"
    sized = {} if named == "class_labels" else {"height": row.size[0], "width": row.size[1]}
    if "pixart" in model.id or "sana" in model.id:
        sized["use_resolution_binning"] = False
    model.pipe(
        **{named: list(row.prompts)}, generator=generators, num_inference_steps=STEPS, output_type="np", **sized,
        **row.options,
    )  # fmt: skip
    handle.remove()
    return found


class TestEveryPipeline:
    def test_tokens_are_those_that_a_plain_hook_sees_at_every_step_and_branch(self, model, row):
        site = model.site(row.block)
        seen = seen_by_plain_hooks(model, row, site)
        guided = row.branches != (("none",),)
        sampling = Sampling(steps=STEPS, branch="both" if guided else "cond")
        stream = Stream(model, row.block, prompts_of(row), dtype="float32", batch=2, workers=0, sampling=sampling)
        (chunk,) = stream.chunks()
        calls = len(row.branches)
        assert len(seen) >= calls * STEPS
        timesteps = list(dict.fromkeys(model.pipe.scheduler.timesteps.tolist()))
        for step in range(STEPS):
            for call, branches in enumerate(row.branches):
                for part, branch in enumerate(branches):
                    if guided and branch == "none":
                        continue  # what belongs to neither branch (perturbed attention) is not collected
                    mine = (chunk.step == step) & (chunk.branch == CODES[branch])
                    expected = seen[self._call(model, step) * calls + call].chunk(len(branches))[part]
                    expected = expected[:, len(site.prefix) :]
                    assert torch.equal(chunk.rows[mine], expected.reshape(-1, site.d)), (step, branch)
                    level = noise_level(model.pipe.scheduler, timesteps[step])
                    assert chunk.sigma[mine].unique().item() == pytest.approx(level)
        assert chunk.item.unique().tolist() == [0, 1]
        assert len(chunk) == stream.n_rows == 2 * STEPS * (2 if guided else 1) * site.grid[0] * site.grid[1]

    def _call(self, model, step):
        """Number of the first step of the scheduler at a distinct timestep: PNDM comes back to its second one."""
        return model.pipe.scheduler.timesteps.tolist().index(
            list(dict.fromkeys(model.pipe.scheduler.timesteps.tolist()))[step]
        )

    def test_nothing_stays_on_the_pipeline_and_its_images_stay_the_same(self, model, row):
        def hooks():
            parts = [part for part in model.pipe.components.values() if isinstance(part, torch.nn.Module)]
            modules = [m for part in parts for m in part.modules()]
            return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)

        options = {"steps": 2, "output_type": "np"}
        before, count = torch.as_tensor(model.generate(row.prompts, [3, 4], **options)), hooks()
        stream = Stream(model, row.block, prompts_of(row), batch=2, sampling=Sampling(steps=2, collect=(0,)))
        assert len(list(stream.chunks())) == 1
        assert hooks() == count
        assert "clock" not in vars(model.pipe)
        assert torch.equal(before, torch.as_tensor(model.generate(row.prompts, [3, 4], **options)))


def test_chosen_steps_and_a_chosen_branch_are_those_of_a_whole_run(sd):
    data = load_prompts(TEXTS[:2])
    whole = next(iter(Stream(sd, SITE, data, dtype="float32", sampling=Sampling(steps=5, branch="both")).chunks()))
    part = Sampling(steps=5, collect=(-1, 1), branch="uncond")
    chosen = next(iter(Stream(sd, SITE, data, dtype="float32", sampling=part).chunks()))
    mine = ((whole.step == 1) | (whole.step == 4)) & (whole.branch == CODES["uncond"])
    assert torch.equal(chosen.rows, whole.rows[mine])
    assert torch.equal(chosen.sigma, whole.sigma[mine])
    assert set(chosen.step.tolist()) == {1, 4}


def test_generation_ends_with_the_last_step_that_is_collected(sd):
    calls = []
    handle = sd.pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    stream = Stream(sd, SITE, load_prompts(TEXTS[:2]), sampling=Sampling(steps=8, collect=(0, 2)))
    stream.making.meta  # noqa: B018 (the probe is over)
    calls.clear()
    next(iter(stream.chunks()))
    handle.remove()
    assert len(calls) == 4  # PNDM comes back to its second timestep


def test_a_store_keeps_step_noise_level_and_branch_and_holds_what_a_stream_brings(sd, tmp_path):
    data = load_prompts(TEXTS)
    policy, sampling = TokenPolicy(per_image=5, seed=2), Sampling(steps=3, branch="both")
    common = {"policy": policy, "batch": 2, "workers": 0, "sampling": sampling}
    ahead = estimate(sd, SITE, data, tmp_path, policy=policy, batch=2, sampling=sampling)
    extract(sd, SITE, data, tmp_path / "store", shard_bytes=2000, progress=False, **common)
    store, stream = Store(tmp_path / "store"), Stream(sd, SITE, data, **common)
    assert ahead.rows == store.n_rows == stream.n_rows == 6 * 3 * 2 * 5
    assert len(store.shards) > 1
    names = ("rows", "step", "sigma", "branch", "y")
    joined = [{name: torch.cat([getattr(c, name) for c in s.chunks()]) for name in names} for s in (store, stream)]
    for name, values in joined[0].items():
        assert torch.equal(values, joined[1][name]), name
    assert store.notes[1].captions == (TEXTS[1],)
    assert store.notes[1].seed == data[1].seed
    tokens = store.item(4)
    assert tokens.sigma.unique().numel() == 3
    assert tokens.branch.unique().tolist() == [0, 1]
    per_step = tokens.index.reshape(6, 5)
    assert len({tuple(places.tolist()) for places in per_step}) > 1  # other tokens at every step
    other = common | {"sampling": Sampling(steps=4, branch="both")}
    with pytest.raises(StoreError, match=r"collected.steps: 3 -> 4"):
        extract(sd, SITE, data, tmp_path / "store", progress=False, **other)


@pytest.mark.parametrize("kind", ["store", "stream"])
def test_batches_bring_the_noise_level_of_every_row_and_resume_exactly(kind, sd, tmp_path):
    data, sampling = load_prompts(TEXTS), Sampling(steps=3)
    stream = Stream(sd, SITE, data, dtype="float32", batch=2, workers=0, sampling=sampling)
    source = stream
    if kind == "store":
        source = extract(sd, SITE, data, tmp_path, dtype="float32", batch=2, sampling=sampling, progress=False)
    level = {tuple(row.tolist()): float(s) for c in stream.chunks() for row, s in zip(c.rows, c.sigma, strict=True)}
    loader = source.loader(50, seed=1, buffer_bytes=4000)
    batches = []
    for number in range(12):
        batch = next(loader)
        assert isinstance(batch, Rows)
        assert batch.side["sigma"].tolist() == [level[tuple(row.tolist())] for row in batch.rows]
        batches.append(Rows(batch.rows.clone(), dict(batch.side)))
        if number == 4:
            state = loader.state_dict()
    again = source.loader(50, seed=7, buffer_bytes=4000)
    again.load_state_dict(state)
    for expected in batches[5:]:
        batch = next(again)
        assert torch.equal(batch.rows, expected.rows)
        assert torch.equal(batch.side["sigma"], expected.side["sigma"])


class Pictures:
    """Two grey images with captions."""

    name, fingerprint, factors = "greys", "greys", {}

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Sample(Image.new("RGB", (24, 16), (90 + 100 * index,) * 3), f"grey/{index}", captions=(TEXTS[index],))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart-alpha"])
def test_noise_is_added_to_given_images_by_one_call_per_step(name, tiny_pipelines):
    row = tiny_pipelines.PIPELINES[name]
    model = visae.wrap(tiny_pipelines.build(name), name=name, image_size=row.size, **row.options)
    denoiser, given = getattr(model.pipe, model.denoiser.name), []
    sampling = Sampling("noise", steps=6, collect=(0, 5))
    stream = Stream(model, row.block, Pictures(), dtype="float32", batch=2, workers=0, sampling=sampling)
    handle = denoiser.register_forward_pre_hook(lambda _m, args, kw: given.append((args, kw)), with_kwargs=True)
    (chunk,) = stream.chunks()
    handle.remove()
    calls = [next(v for v in (*args, *kw.values()) if isinstance(v, torch.Tensor)) for args, kw in given[1:]]
    assert len(calls) == 2
    last = stream.meta.collected.slots[-1]
    pixels = torch.stack([stream.making.reader.load(i).pixels for i in range(2)])
    clean = encoded(model.pipe, pixels)
    clean = model.pipe._pack_latents(clean, *clean.shape) if calls[1].dim() == 3 else clean
    flow = stream.meta.collected.scale == "flow"
    kept = (1 - last.sigma) if flow else 1 / (1 + last.sigma**2) ** 0.5
    share = last.sigma if flow else last.sigma / (1 + last.sigma**2) ** 0.5
    noise = (calls[1][:2] - kept * clean) / share
    assert abs(noise.std().item() - 1) < 0.15
    assert abs(noise.mean().item()) < 0.15
    assert set(chunk.step.tolist()) == {0, 5}
    assert torch.isfinite(chunk.rows).all()
    alone = Stream(model, row.block, Pictures(), dtype="float32", batch=1, workers=0, sampling=sampling)
    rows = torch.cat([one.rows for one in alone.chunks()])
    torch.testing.assert_close(rows, chunk.rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart-alpha", "flux"])
def test_text_encoders_are_read_alone(name, tiny_pipelines):
    row = tiny_pipelines.PIPELINES[name]
    model = visae.wrap(tiny_pipelines.build(name), name=name, image_size=row.size, **row.options)
    site = next(s for s in model.sites().values() if s.path.startswith("text_encoder.") and s.kind == "output")
    steps = []
    handle = getattr(model.pipe, model.denoiser.name).register_forward_hook(lambda *_: steps.append(1))
    data = load_prompts(["a red square", "a star"])
    stream = Stream(model, site, data, dtype="float32", workers=0, sampling=Sampling("text"))
    (chunk,) = stream.chunks()
    handle.remove()
    assert not steps
    assert len(chunk) == 2 * site.n_tokens
    first, second = chunk.rows.reshape(2, site.n_tokens, -1)
    assert not torch.equal(first, second)
    assert chunk.sigma.isnan().all()
    assert isinstance(next(stream.loader(4)), torch.Tensor)
    again = Stream(model, site, load_prompts(["a star"]), dtype="float32", workers=0, sampling=Sampling("text"))
    torch.testing.assert_close(next(iter(again.chunks())).rows, second)


def test_what_does_not_fit_is_refused_and_said(sd, tiny_pipelines):
    data = load_prompts(TEXTS)
    with pytest.raises(ValueError, match="distinct timesteps has steps 0 to 3, asked to collect 4"):
        Stream(sd, SITE, data, sampling=Sampling(steps=4, collect=(4,)))
    with pytest.raises(ValueError, match="no unconditional branch: set guidance above 1"):
        Stream(sd, SITE, data, sampling=Sampling(guidance=1.0, branch="uncond"))
    with pytest.raises(ValueError, match=r"belongs to the text encoders.*collect them alone"):
        Stream(sd, "text_encoder.encoder.layers.1", data)
    with pytest.raises(ValueError, match=r"belongs to unet, which the mode 'text' does not run"):
        Stream(sd, SITE, data, sampling=Sampling("text"))
    with pytest.raises(ValueError, match=r"takes images, but .* holds prompts"):
        Stream(sd, SITE, data, sampling=Sampling("noise"))
    with pytest.raises(ValueError, match=r"takes prompts, but greys holds images"):
        Stream(sd, SITE, Pictures())
    dit = visae.wrap(tiny_pipelines.build("dit"), name="dit", image_size=(16, 16))
    with pytest.raises(ValueError, match="images of numbered classes; 'a cat' is not a number"):
        next(iter(Stream(dit, "transformer.transformer_blocks.1", load_prompts(["a cat"])).chunks()))


def test_an_exception_in_the_middle_of_a_generation_leaves_nothing_behind(sd):
    class Broken:
        name, fingerprint, factors = "broken", "broken", {}

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Prompt("a star", index, f"{index}")

        def group_of(self, index):
            return None

    def fail(*_):
        raise ArithmeticError("in the middle")

    stream = Stream(sd, SITE, Broken(), workers=0, sampling=Sampling(steps=3))
    handle = sd.pipe.unet.up_blocks[0].register_forward_hook(fail)
    with pytest.raises(ArithmeticError, match="in the middle"):
        next(iter(stream.chunks()))
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in sd.pipe.unet.modules())
    assert next(iter(stream.chunks())).step.unique().tolist() == [0, 1, 2]


def test_a_code_table_knows_step_noise_level_and_branch_of_every_token(sd, tmp_path):
    stream = Stream(sd, SITE, load_prompts(TEXTS[:3]), batch=2, sampling=Sampling(steps=3, branch="both"))
    chunks = list(stream.chunks())
    sae = make_sae("topk", stream.d, 32, k=3)
    initialise(sae, torch.cat([c.rows for c in chunks]).float())
    table = CodeTable.build(sae, stream, tmp_path / "codes", progress=False)
    for name in ("step", "sigma", "branch"):
        assert np.array_equal(table.array(name), torch.cat([getattr(c, name) for c in chunks]).numpy())
    by_step = table.density_by("step")
    assert list(by_step) == [0, 1, 2]
    codes = sae.encode(torch.cat([c.rows for c in chunks]).float())
    first = (torch.cat([c.step for c in chunks]) == 0) & (codes.values != 0).any(1)
    used = torch.bincount(codes.indices[first].flatten(), minlength=32)[:32] / (len(first) / 3)
    np.testing.assert_allclose(by_step[0], used.numpy(), rtol=1e-6)
    np.testing.assert_allclose(sum(by_step.values()) / 3, table.density, rtol=1e-6)
    latent = int(table.alive[0])
    mine = torch.where(codes.indices == latent, codes.values, 0).sum(1).reshape(3, 6, 4, 6).amax(1)
    np.testing.assert_allclose(table.grid(1, latent), mine[1].detach().numpy(), rtol=1e-6)


def test_a_code_table_of_a_dictionary_that_follows_the_noise_level_is_told_it(sd, tmp_path):
    stream = Stream(sd, SITE, load_prompts(TEXTS[:2]), dtype="float32", sampling=Sampling(steps=2))
    (chunk,) = stream.chunks()
    sae = make_sae("temporal", stream.d, 32, k=3)
    rows = Rows(chunk.rows, {"sigma": chunk.sigma})
    initialise(sae, rows)
    with torch.no_grad():
        sae.modulation.second.bias.normal_()
    table = CodeTable.build(sae.eval(), stream, tmp_path / "codes", progress=False)
    codes = sae.encode(chunk.rows, sigma=chunk.sigma)
    latent, value = np.asarray(table.array("latent")), np.asarray(table.array("value"))
    keep = (codes.indices >= 0) & (codes.values != 0)
    assert np.array_equal(latent, codes.indices[keep].numpy())
    np.testing.assert_allclose(value, codes.values[keep].detach().numpy(), rtol=1e-5)


def test_the_benchmark_of_a_pipeline_times_bare_generation_collecting_and_an_identity_edit(sd, monkeypatch):
    from visae.store import bench_generate as bench

    ran = []
    for name in ("_bare", "_collect"):
        original = getattr(bench, name)
        monkeypatch.setattr(bench, name, lambda *a, name=name, original=original: (ran.append(name), original(*a)))
    told = bench.bench_generate(sd, SITE, images=1, batch=1, steps=2, repeats=1)
    assert ran == ["_bare", "_bare", "_collect", "_bare"]  # to warm up, then all three
    assert told["collect_overhead"] == pytest.approx(told["collect_s"] / told["bare_s"] - 1, abs=0.01)
    assert told["identity_overhead"] == pytest.approx(told["identity_s"] / told["bare_s"] - 1, abs=0.01)
    assert (told["model"], told["site"], told["steps"]) == ("diffusers:sd", SITE, 2)
