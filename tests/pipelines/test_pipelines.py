"""Every law of taps, clocks and seeds on every pipeline of one table; a new row is tested by every test here."""

import json

import pytest
import torch

import visae
from visae.registry import UnknownName
from visae.store.probing import collection
from visae.store.sampling import Collection, Sampling
from visae.taps import tap

STEPS = 2
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def n_hooks(pipe):
    modules = [m for part in pipe.components.values() if isinstance(part, torch.nn.Module) for m in part.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def anew(x):
    """The same numbers in other memory, laid out afresh."""
    return x.clone(memory_format=torch.contiguous_format)


@pytest.fixture(scope="class")
def row(tiny_pipelines, pipeline_name):
    return tiny_pipelines.PIPELINES[pipeline_name]


@pytest.fixture(scope="class")
def model(tiny_pipelines, pipeline_name):
    row = tiny_pipelines.PIPELINES[pipeline_name]
    return visae.wrap(tiny_pipelines.build(pipeline_name), name=pipeline_name, image_size=row.size, **row.options)


@pytest.fixture(scope="class")
def make(row, model):
    """Function that generates images of two prompts (or of the given ones), and all calls of the clock."""

    def generate(seeds=(3, 4), prompts=row.prompts, **more):
        seen = []
        with model.clock(after=seen.append):
            images = model.generate(prompts, seeds, **{"steps": STEPS, "output_type": "np"} | more)
        return torch.as_tensor(images), seen

    return generate


@pytest.fixture(scope="class")
def plain(make):
    return make()


class TestEveryPipeline:
    @pytest.mark.filterwarnings("ignore")
    def test_how_it_ran_is_told_in_json_and_comes_back(self, row, model):
        told = collection(model, model.site(row.block), Sampling(steps=STEPS, collect=(0, -1)))
        text = json.dumps(told.to_dict(), allow_nan=False)
        assert Collection.from_dict(json.loads(text)) == told

    def test_sites_have_the_grid_of_the_latents_and_every_block_is_there(self, row, model):
        site = model.site(row.block)
        assert (site.grid, site.stream, site.prefix) == (row.grid, "image", ("text",) * row.prefix)
        assert model.framing.input_hw == row.size
        assert site.stride == (row.size[0] / row.grid[0], row.size[1] / row.grid[1])

    def test_reading_every_site_leaves_every_bit_of_the_images(self, model, make, plain):
        before = n_hooks(model.pipe)
        with tap(model, *model.sites()) as taken:
            images, _ = make()
        assert torch.equal(images, plain[0])
        assert all(taken[n].shape[1:] == (s.n_tokens, s.d) for n, s in model.sites().items())
        assert n_hooks(model.pipe) == before

    def test_rewriting_every_site_by_itself_leaves_every_bit_of_the_images(self, model, make, plain):
        with tap(model, *model.sites(), rewrite=anew):
            assert torch.equal(make()[0], plain[0])

    def test_a_rewrite_reaches_the_images(self, row, model, make, plain):
        with tap(model, row.block, rewrite=lambda x: x.flip(-1)):  # a LayerNorm would undo any x * a + b
            assert not torch.allclose(make()[0], plain[0])

    def test_a_delta_is_the_output_less_the_input_at_every_block(self, model, make):
        names = [n.removesuffix(".delta") for n, s in model.sites().items() if s.kind == "delta"]
        with tap(model, *(f"{n}{end}" for n in names for end in ("", ".input", ".delta"))) as taken:
            make()
        assert names
        assert all(torch.equal(taken[f"{n}.delta"], taken[n] - taken[f"{n}.input"]) for n in names)

    def test_an_image_depends_on_its_seed_and_prompt_and_not_on_its_batch(self, row, make, plain):
        alone, _ = make(seeds=(4,), prompts=row.prompts[1:])
        torch.testing.assert_close(alone[0], plain[0][1], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(make(seeds=(5,), prompts=row.prompts[1:])[0][0], alone[0], atol=1e-3)

    def test_the_clock_labels_every_row_and_starts_anew_with_every_generation(self, row, model, make, plain):
        _, seen = plain
        assert [s.call for s in seen] == list(range(len(seen)))
        assert sorted({s.index for s in seen}) == list(range(STEPS))
        for place, step in enumerate(seen):
            one = row.branches[place % len(row.branches)]
            assert step.branch == tuple(b for b in one for _ in range(2)), "two images: every branch twice"
        sigmas = [s.sigma for s in seen]
        assert sigmas == sorted(sigmas, reverse=True)
        assert make()[1] == seen

    def test_nothing_is_left_after_an_exception_in_the_middle_of_a_generation(self, row, model, make, plain):
        def fail(x):
            if clock.now.index == 1:
                raise ZeroDivisionError
            return x

        before, kept = n_hooks(model.pipe), dict(vars(model.pipe))
        with pytest.raises(ZeroDivisionError), model.clock() as clock, tap(model, row.block, rewrite=fail):
            make()
        assert n_hooks(model.pipe) == before
        assert vars(model.pipe).keys() == kept.keys()
        assert "cache_context" not in vars(getattr(model.pipe, model.denoiser.name))
        assert torch.equal(make()[0], plain[0])

    def test_a_name_that_is_no_site_is_refused_with_names_that_are(self, row, model):
        with pytest.raises(UnknownName, match=row.block.partition(".")[0]):
            model.site("vae.nowhere")
        with pytest.raises(UnknownName):
            model.site(f"{model.denoiser.name}.nowhere")

    def test_a_compiled_denoiser_is_refused(self, row, model):
        name = model.denoiser.name
        original = getattr(model.pipe, name)
        try:
            setattr(model.pipe, name, torch.compile(original, backend="eager"))
            with pytest.raises(ValueError, match="compiled"), tap(model, row.block):
                pass
            with pytest.raises(ValueError, match="compiled"):
                visae.wrap(model.pipe)
        finally:
            setattr(model.pipe, name, original)


def test_a_pipeline_saved_to_a_folder_is_loaded_by_name(tiny_pipelines, tmp_path):
    pipe = tiny_pipelines.build("sd")
    pipe.save_pretrained(tmp_path / "toy")
    loaded = visae.load_model(f"diffusers:{tmp_path / 'toy'}")
    assert loaded.revision == visae.wrap(pipe).revision
    assert loaded.sites() == visae.wrap(pipe).sites()
