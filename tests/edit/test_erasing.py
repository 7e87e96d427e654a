"""Edits that are installed, switched, compiled around, and taken to another process."""

import subprocess
import sys

import pytest
import torch

import visae
from visae.edit import ErrorGate, ablate, above_mean, add, negative_of_mean, on_tokens, scale
from visae.edit.apply import EditedSite
from visae.edit.erasing import Erasing, load_erasure
from visae.edit.saving import packed, unpacked

SITE, TEXT = "unet.mid_block.attentions.0", "text_encoder.encoder.layers.1"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def pipe(tiny_pipelines):
    return tiny_pipelines.build("sd")


def images(pipe):
    out = pipe(["a red square", "blue star"], num_inference_steps=2, height=16, width=16, output_type="np",
               generator=[torch.Generator().manual_seed(s) for s in (1, 2)])  # fmt: skip
    return torch.as_tensor(out.images)


@pytest.fixture
def erasing(dictionary):
    """Function from a pipeline to edits at two of its sites."""

    def made(pipe):
        model = visae.wrap(pipe, image_size=16)
        first, second = dictionary(model.site(SITE).d), dictionary(model.site(TEXT).d, seed=1)
        return Erasing(model, [
            EditedSite(first, SITE, (add([1], 30.0).who("cond").when(sigma=(0.0, 1e9)), scale([3, 4], (-2.0, 0.5)))),
            EditedSite(second, TEXT, (ablate([5]).whether(ErrorGate(0.0)),)),
        ], {"concept": "square"})  # fmt: skip

    return made


def test_installed_edits_act_until_they_are_removed_and_are_switched(pipe, erasing):
    plain = images(pipe)
    edits = erasing(pipe)
    with edits:
        inside = images(pipe)
    assert not torch.equal(inside, plain)
    assert torch.equal(images(pipe), plain)
    edits.install()
    assert torch.equal(images(pipe), inside)
    edits.on = False
    assert torch.equal(images(pipe), plain)
    edits.on = True
    assert torch.equal(images(pipe), inside)
    with pytest.raises(RuntimeError, match="installed already"):
        edits.install()
    edits.remove()
    assert torch.equal(images(pipe), plain)
    erasing(pipe).install().remove()  # also where nothing ran
    with pytest.raises(RuntimeError, match="nothing is installed"):
        edits.on = False


def test_installed_edits_act_in_a_network_that_is_compiled_afterwards(pipe, erasing):
    edits = erasing(pipe)
    with edits:
        inside = images(pipe)
    plain, original = images(pipe), pipe.unet
    edits.install()
    pipe.unet = torch.compile(original, backend="eager")
    torch.testing.assert_close(images(pipe), inside, rtol=1e-4, atol=1e-4)
    edits.on = False
    torch.testing.assert_close(images(pipe), plain, rtol=1e-4, atol=1e-4)
    edits.on = True
    torch.testing.assert_close(images(pipe), inside, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="compiled"):
        visae.wrap(pipe)
    torch._dynamo.reset()


def test_an_exported_folder_does_the_same_in_another_process(pipe, tmp_path, erasing):
    edits = erasing(pipe)
    with edits:
        inside = images(pipe)
    assert not torch.allclose(inside, images(pipe), atol=1e-2)
    pipe.save_pretrained(tmp_path / "sd")
    edits.export(tmp_path / "erasure")
    torch.save(inside, tmp_path / "images.pt")
    with pytest.raises(FileExistsError):
        edits.export(tmp_path / "erasure")
    script = f"""
import torch, diffusers, visae
pipe = diffusers.StableDiffusionPipeline.from_pretrained({str(tmp_path / "sd")!r})
visae.load_erasure({str(tmp_path / "erasure")!r}, pipe).install()
out = pipe(["a red square", "blue star"], num_inference_steps=2, height=16, width=16, output_type="np",
           generator=[torch.Generator().manual_seed(s) for s in (1, 2)])
wanted = torch.load({str(tmp_path / "images.pt")!r})
torch.testing.assert_close(torch.as_tensor(out.images), wanted, rtol=1e-3, atol=1e-4)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_export_refuses_other_pipelines(pipe, tiny_pipelines, tmp_path, erasing):
    erasing(pipe).export(tmp_path / "erasure")
    other = tiny_pipelines.build("sd2")
    with pytest.raises(ValueError, match="made for a StableDiffusionPipeline"):
        load_erasure(tmp_path / "erasure", other)
    assert load_erasure(tmp_path / "erasure", other, strict=False).about == {"concept": "square"}
    with pytest.raises(FileNotFoundError, match=r"holds no erasure\.json"):
        load_erasure(tmp_path, pipe)


def test_edits_come_back_from_json_and_tensors_as_they_were():
    levels, means = torch.tensor([1.0, 4.0]), torch.rand(2, 2)
    edit = negative_of_mean([2, 5], levels, means).where(above_mean(levels, means), on_tokens(torch.ones(2, 3)))
    edit = (
        edit.when(sigma=(0.5, 2.0), steps=(0, 4)).who("opposed", samples=[1]).times([1.0, 2.0]).whether(ErrorGate(0.25))
    )
    tensors = {}
    told = packed(edit, tensors, "a")
    back = unpacked(told, tensors)
    again = {}
    assert packed(back, again, "a") == told
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
    assert (back.latents, back.strength, back.samples, back.gate.threshold) == ((2, 5), (1.0, 2.0), (1,), 0.25)
    with pytest.raises(ValueError, match=r"'a\.change\.means' of an edit is missing"):
        unpacked(told, {k: v for k, v in tensors.items() if k != "a.change.means"})
