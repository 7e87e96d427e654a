"""Every erasing method of the registry on pipelines of different layouts: what holds for all of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import visae
from visae.erasers import METHODS, Request, Tools, Unsuitable, tools_of

GIVEN = {"steps": 2, "guidance": 3.0}
SMALL = {
    "esd_x": {"iterations": 2, "lr": 1e-3},
    "esd_u": {"iterations": 2, "lr": 1e-3},
    "crisp": {"iterations": 2, "lr": 1e-2, "least": 0.0},
    "itd": {"kept": 20, "margin": 0.0},
    "dsg": {"false_positives": 1.0, "top_m": 1},
    "ours": {"false_positives": 1.0},
}
"""Settings under which a method does little."""
CANNOT = {
    ("negative_prompt", "dit"): "takes no negative prompt",
    ("negative_prompt", "flux"): "without guidance",
    ("sld", "flux"): "without guidance",
    ("sld_strong", "flux"): "without guidance",
    ("sld_max", "flux"): "without guidance",
    **{("uce", name): "no cross-attention" for name in ("dit", "flux", "flux-guided")},
    **{(method, "dit"): "a site of a text encoder" for method in ("itd", "steerers")},
    **{("esd_x", name): "no cross-attention" for name in ("dit", "flux", "flux-guided")},
}
"""Method and pipeline -> what the refusal says."""
LAYOUTS = ("sd", "dit", "flux-guided", "flux")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def request_for(name):
    if name == "dit":
        return Request("3", ("3", "3"), ("7", "5"), (("3", "7"),), given=GIVEN)
    return Request(
        "star", ("a red star", "blue star on grey"), ("a red square", "green circle"), (("a star", "a"),), given=GIVEN
    )


def state(pipe, model):
    """Everything of a pipeline that a method could leave changed."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {
        "tensors": {
            (name, key): (t.data_ptr(), t.requires_grad, t.dtype, t.detach().numpy().tobytes())
            for name, part in parts.items()
            for key, t in [*part.named_parameters(), *part.named_buffers()]
        },
        "grads": [key for part in parts.values() for key, p in part.named_parameters() if p.grad is not None],
        "modules": {
            (name, key): (type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), *sorted(vars(m)))
            for name, part in parts.items()
            for key, m in part.named_modules()
        },
        "pipe": sorted(vars(pipe)),
        "scheduler": sorted(set(vars(pipe.scheduler)) & {"step"}),
        "adapted": (sorted(set(vars(model)) - {"first_calls", "catalogues", "revision"}), dict(model.options)),
    }


class Failing:
    """A context that raises where it ends."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        raise ZeroDivisionError


class Bench:
    """A pipeline of the table, and what it makes."""

    def __init__(self, table, name, dictionary):
        row = table.PIPELINES[name]
        self.name, self.prompts, self.site = name, row.prompts, row.block
        self.model = visae.wrap(table.build(name), name=name, image_size=row.size, **row.options)
        texts = [n for n, s in self.model.sites().items() if s.path.startswith("text") and s.kind == "output"]
        saes = {n: dictionary(self.model.site(n).d, 200) for n in {row.block, *texts[-2:-1]}}
        self.tools = tools_of(self.model, saes, given=GIVEN, batch=2)
        self.plain = self.images()
        self.before = state(self.model.pipe, self.model)

    def images(self):
        made = self.model.generate(self.prompts, (3, 4), output_type="np", **GIVEN)
        return torch.as_tensor(made)


@pytest.fixture(scope="session", params=LAYOUTS)
def bench(request, tiny_pipelines, dictionary):
    return Bench(tiny_pipelines, request.param, dictionary)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_changes_images_inside_its_context_and_leaves_every_bit_of_the_pipeline_afterwards(
    name, bench, tmp_path
):
    method = replace(METHODS[name], **SMALL.get(name, {}))
    tools = replace(bench.tools, folder=tmp_path)
    if said := CANNOT.get((name, bench.name)):
        with pytest.raises(Unsuitable, match=said):
            method.build(bench.model, request_for(bench.name), tools)
        assert state(bench.model.pipe, bench.model) == bench.before
        return
    erasure = method.build(bench.model, request_for(bench.name), tools)
    assert state(bench.model.pipe, bench.model) == bench.before, "building left something"
    assert erasure.settings == method.settings
    with erasure():
        inside = bench.images()
    assert inside.shape == bench.plain.shape
    assert torch.isfinite(inside).all()
    assert not torch.equal(inside, bench.plain)
    assert state(bench.model.pipe, bench.model) == bench.before
    with pytest.raises(ZeroDivisionError), erasure(), Failing():
        again = bench.images()
    assert torch.equal(again, inside), "entered again, it does the same"
    assert state(bench.model.pipe, bench.model) == bench.before
    assert torch.equal(bench.images(), bench.plain)


def test_a_request_without_a_concept_or_without_the_prompts_that_a_method_needs_is_refused():
    with pytest.raises(ValueError, match="concept in words"):
        Request("")
    with pytest.raises(Unsuitable, match="retain prompts"):
        Request("star", ("a star",)).prompts("retain")


def test_tools_that_bring_no_dictionary_say_so():
    with pytest.raises(Unsuitable, match=r"dictionary of unet\.mid_block"):
        Tools().sae("unet.mid_block")
    with pytest.raises(Unsuitable, match=r"statistics of 1 prompts at unet\.mid_block"):
        Tools().statistics("unet.mid_block", ["a star"], 0)
