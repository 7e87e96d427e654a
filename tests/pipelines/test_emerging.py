"""Predicted clean latents against a denoiser that knows the truth, and their pictures."""

import diffusers
import numpy as np
import pytest
import torch

import visae
from visae.emerging import decoded, emerging, predicted_clean
from visae.taps import tap

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = [
    (diffusers.DDIMScheduler, {}),
    (diffusers.DDIMScheduler, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    (diffusers.DDPMScheduler, {}),
    (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    (diffusers.LCMScheduler, {}),
    (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
    (diffusers.EulerAncestralDiscreteScheduler, {"timestep_spacing": "leading"}),
    (diffusers.HeunDiscreteScheduler, {"timestep_spacing": "leading"}),
    (diffusers.DPMSolverMultistepScheduler, {}),
    (diffusers.UniPCMultistepScheduler, {}),
    (diffusers.DPMSolverMultistepScheduler, FLOW),
    (diffusers.FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
]


def predictions():
    """Every scheduler with each kind of prediction that tells the image at all of its noise levels."""
    for cls, options in SCHEDULERS:
        if "Flow" in cls.__name__ or "flow_shift" in options:
            yield cls, options, "flow"
            continue
        blind = ["epsilon"] if options.get("rescale_betas_zero_snr") else []  # at zero signal, noise says nothing
        for kind in ("epsilon", "v_prediction", "sample"):
            if kind not in blind:
                yield cls, {"prediction_type": kind} | options, kind


def truth(scheduler, kind, timestep, clean, noise):
    """Noisy latents as the scheduler keeps them, and what a denoiser that knows the truth puts out."""
    place = int((scheduler.timesteps == timestep).nonzero()[0])
    if kind == "flow":
        sigma = scheduler.sigmas[place]
        return (1 - sigma) * clean + sigma * noise, noise - clean
    a = scheduler.alphas_cumprod[int(timestep)].double()
    mixed = a.sqrt() * clean + (1 - a).sqrt() * noise
    output = {"epsilon": noise, "sample": clean, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean}[kind]
    sigma_scaled = float(scheduler.init_noise_sigma) > 2
    return (clean + ((1 - a) / a).sqrt() * noise if sigma_scaled else mixed), output


@pytest.mark.parametrize(("cls", "options", "kind"), list(predictions()))
def test_a_denoiser_that_knows_the_truth_predicts_it_at_every_step(cls, options, kind):
    scheduler = cls(**options)
    scheduler.set_timesteps(7)
    clean, noise = torch.randn(2, 2, 4, 5, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    for timestep in scheduler.timesteps.unique():
        sample, output = truth(scheduler, kind, timestep, clean, noise)
        found = predicted_clean(scheduler, output, timestep, sample)
        assert torch.allclose(found.double(), clean, atol=5e-3, rtol=5e-3), float(timestep)


@pytest.mark.parametrize("name", ["sd"])
def test_watching_changes_no_bit_and_ends_at_the_image_itself(tiny_pipelines, name):
    pipe = tiny_pipelines.build(name)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    model = visae.wrap(pipe)
    plain = model.generate(["a red square"], [3], steps=3, output_type="latent")
    with emerging(pipe) as moments:
        watched = model.generate(["a red square"], [3], steps=3, output_type="latent")
    assert torch.equal(plain, watched)
    assert "step" not in vars(pipe.scheduler), "nothing is left on the scheduler"
    assert [m.sigma for m in moments] == sorted((m.sigma for m in moments), reverse=True)
    assert len(moments) == 3
    height, width = model.framing.input_hw
    (frame,) = decoded(pipe, watched, height, width)
    (whole,) = model.generate(["a red square"], [3], steps=3, output_type="pil")
    assert np.abs(np.asarray(frame).astype(int) - np.asarray(whole)).max() <= 1


def test_an_exception_in_the_midst_leaves_the_scheduler_as_it_was(tiny_pipelines):
    model = visae.wrap(tiny_pipelines.build("sd"))

    def fail(_tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), emerging(model.pipe), tap(model, "unet.mid_block", rewrite=fail):
        model.generate(["a red square"], [3], steps=3)
    assert "step" not in vars(model.pipe.scheduler)
