"""What is preserved under reconstructions: exactly all of it, exactly nothing, and closed forms between."""

import numpy as np
import pytest
import torch

import visae
from visae.data import load_prompts
from visae.evaluate.preserved import agreement, preserved, reconstruction, replaced, target
from visae.sae import make_sae
from visae.store import Sampling
from visae.store.noising import noised
from visae.store.probing import collection

SITE = "unet.up_blocks.0.attentions.0"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]


class Copy:
    """A dictionary that gives back what it gets, plus `error` times a fixed direction."""

    needs = needs_to_encode = ()

    def __init__(self, d, error=0.0):
        self.mean = torch.zeros(d)
        self.error = error

    def encode(self, x):
        return x

    def decode(self, codes):
        return codes + self.error


@pytest.fixture(scope="module")
def sd(tiny_pipelines):
    return visae.wrap(tiny_pipelines.build("sd2"), name="sd2", image_size=(16, 24))


@pytest.fixture(scope="module")
def site(sd):
    return next(s for s in sd.sites().values() if s.path.endswith("attentions.0") and s.kind == "output")


@pytest.fixture(scope="module")
def prompts():
    data = load_prompts("world:prompts?n=3&split=test")
    return [data[i] for i in range(3)]


def both(sd, site, **more):
    return collection(sd, site, Sampling(steps=3, branch="both", **more))


def test_a_perfect_reconstruction_changes_no_bit_and_recovers_everything(sd, site, prompts):
    found = preserved(sd, Copy(site.d), site, both(sd, site), prompts, batch=2)
    for one, other in zip(found.plain, found.reconstructed, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert found.distances == {"layout": 0.0, "texture": 0.0, "colour": 0.0}
    assert len(found.losses) == 3
    assert list(found.losses) == sorted(found.losses)
    for losses in found.losses.values():
        assert losses.reconstructed == losses.plain
        assert losses.recovered("mean") == losses.recovered("zero") == 1.0
        assert losses.mean == losses.zero  # the mean of this dictionary is zero
        assert losses.n == 3 * 4 * 8 * 12


def test_a_reconstruction_that_is_the_ablation_recovers_nothing(sd, site, prompts):
    sae = make_sae("topk", site.d, 8, k=1)
    torch.nn.init.zeros_(sae.W_dec)
    found = preserved(sd, sae, site, both(sd, site), prompts[:1])
    for losses in found.losses.values():
        assert losses.recovered("mean") == pytest.approx(0.0, abs=1e-5)
        assert losses.plain != losses.zero


def test_only_collected_branches_and_noise_levels_are_replaced(sd, site, prompts):
    def seen(collected, error):
        rows = []
        module = sd.module.get_submodule(site.path)
        with sd.clock() as clock, replaced(sd, site, collected, reconstruction(Copy(site.d, error)), lambda: clock.now):
            handle = module.register_forward_hook(lambda _m, _a, out: rows.append(out[0].clone()))
            sd.generate([prompts[0].text], [0], steps=3, output_type="latent")
            handle.remove()
        return rows

    plain = seen(both(sd, site), 0.0)
    cond = collection(sd, site, Sampling(steps=3, collect=(0,), branch="cond"))
    moved = seen(cond, 1.0)
    torch.testing.assert_close(moved[0][1], plain[0][1] + 1.0)
    assert torch.equal(moved[0][0], plain[0][0])
    before = [m for m in sd.pipe.unet.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not before
    only_last = collection(sd, site, Sampling(steps=3, collect=(-1,), branch="both"))
    moved = seen(only_last, 1.0)
    assert torch.equal(moved[0], plain[0])
    assert torch.equal(moved[1], plain[1])
    torch.testing.assert_close(moved[2], plain[2] + 1.0)


def test_targets_are_what_brings_clean_latents_back():
    """Whatever a denoiser predicts, the prediction of x0 from its target is the clean latents."""
    import diffusers

    from visae.clock import noise_level, noise_scale
    from visae.emerging import predicted_clean

    torch.manual_seed(0)
    clean, noise = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    kinds = [diffusers.DDIMScheduler(prediction_type=k) for k in ("epsilon", "v_prediction", "sample")]
    for scheduler in (*kinds, diffusers.FlowMatchEulerDiscreteScheduler()):
        scheduler.set_timesteps(10)
        timestep = scheduler.timesteps[4]
        sigma = noise_level(scheduler, float(timestep))
        noisy = noised(clean, noise, sigma, noise_scale(scheduler))
        found = predicted_clean(scheduler, target(scheduler, clean, noise, sigma), timestep, noisy)
        torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-4)
    odd = diffusers.DDIMScheduler(prediction_type="epsilon")
    odd.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="predicts 'score'"):
        target(odd, clean, noise, 1.0)


def test_agreement_counts_what_prompts_ask_for_and_the_judge_is_asked_once_for_each_kind_of_picture(sd, site, prompts):
    asked = []

    def judge(pictures):
        asked.append(len(pictures))
        answer = prompts[0].labels.get("colour", ("red",))[0]
        return {"colour": [answer] * len(pictures)}

    def embed(pictures):
        return torch.stack([torch.from_numpy(np.array(p)).float().flatten() for p in pictures])

    found = preserved(sd, Copy(site.d, 3.0), site, both(sd, site), prompts[:2], judge=judge, embed=embed)
    assert asked == [2, 2]
    assert found.kept == {"colour": 1.0}
    assert 0 < found.distances["embedding"] < 1
    told = found.to_dict()
    assert told["n"] == 2
    wanted = [(p, f) for p in prompts for f in ("shape", "colour") if len(p.labels.get(f, ())) == 1]
    right = {f: [p.labels.get(f, ("?",))[0] for p in prompts] for f in ("shape", "colour")}
    assert agreement(prompts, right) == 1.0
    wrong = {"shape": right["shape"], "colour": ["none"] * 3}
    assert agreement(prompts, wrong) == pytest.approx(sum(f == "shape" for _, f in wanted) / len(wanted))
    assert agreement(prompts, {"mood": ["x"] * 3}) is None
