"""The clock against what the denoiser is called with, for every scheduler of a table and every kind of guidance."""

import diffusers
import numpy as np
import pytest
import torch

import visae
from visae.clock import noise_level, noise_scale

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
STEPS = 6
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
VARIANCE = {  # scheduler, its configuration, calls of the denoiser in STEPS steps
    "ddim": ("DDIMScheduler", {}, STEPS),
    "ddim-zero-snr": ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, STEPS),
    "ddpm": ("DDPMScheduler", {}, STEPS),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, STEPS + 1),
    "heun": ("HeunDiscreteScheduler", {}, 2 * STEPS - 1),
    "euler": ("EulerDiscreteScheduler", {}, STEPS),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, STEPS),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}, STEPS),
    "lms": ("LMSDiscreteScheduler", {}, STEPS),
    "dpm++": ("DPMSolverMultistepScheduler", {}, STEPS),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, STEPS),
    "dpm-single": ("DPMSolverSinglestepScheduler", {}, STEPS),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, 2 * STEPS - 1),
    "unipc": ("UniPCMultistepScheduler", {}, STEPS),
    "deis": ("DEISMultistepScheduler", {}, STEPS),
    "lcm": ("LCMScheduler", {}, STEPS),
}
AS_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, STEPS),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}, 2 * STEPS - 1),
    "dpm++": ("DPMSolverMultistepScheduler", AS_FLOW, STEPS),
    "unipc": ("UniPCMultistepScheduler", AS_FLOW, STEPS),
}


@pytest.fixture(scope="module")
def models(tiny_pipelines):
    """Adapted pipelines by name, each built once."""
    made = {}

    def get(name):
        if name not in made:
            row = tiny_pipelines.PIPELINES[name]
            made[name] = visae.wrap(tiny_pipelines.build(name), image_size=row.size, **row.options)
        return made[name]

    return get


def watched(model, run):
    """Steps of the clock, and the timesteps that the denoiser was called with, while `run` runs."""
    steps, timesteps = [], []
    module = getattr(model.pipe, model.denoiser.name)

    def note(_module, args, kwargs):
        given = kwargs["timestep"] if "timestep" in kwargs else args[1]
        timesteps.append(float(torch.as_tensor(given).flatten()[0]))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with model.clock(after=steps.append):
            run()
    finally:
        handle.remove()
    return steps, timesteps


@pytest.fixture
def scheduled(models):
    """Function that puts a scheduler into a pipeline, generates, and puts the old one back."""

    def run(name, scheduler, config, **more):
        model = models(name)
        before = model.pipe.scheduler
        model.pipe.scheduler = getattr(diffusers, scheduler)(**config)
        prompt = ["a red square"]
        try:
            options = {"steps": STEPS, "output_type": "latent"} | more
            return watched(model, lambda: model.generate(prompt, [0], **options))
        finally:
            model.pipe.scheduler = before

    return run


@pytest.mark.parametrize("name", VARIANCE)
def test_every_scheduler_is_read_at_every_call(scheduled, name):
    scheduler, config, calls = VARIANCE[name]
    steps, given = scheduled("sd", scheduler, BETAS | config)
    assert len(steps) == len(given) == calls
    assert [s.timestep for s in steps] == pytest.approx(given, rel=1e-6)
    distinct = sorted(set(given), reverse=True)
    assert [s.index for s in steps] == [distinct.index(t) for t in given]
    assert {(s.count, s.scale) for s in steps} == {(len(distinct), "variance")}
    if "zero" in name:
        assert steps[0].sigma == pytest.approx(4096, rel=1e-3)
        return
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for step, timestep in zip(steps, given, strict=True):  # between whole timesteps, sigma is between theirs
        around = alphas[[int(np.floor(timestep)), int(np.ceil(timestep))]]
        low, high = np.sqrt((1 - around) / around)
        assert low * 0.9999 <= step.sigma <= high * 1.0001


@pytest.mark.parametrize("name", FLOW)
def test_flow_matching_has_sigma_from_one_to_zero(scheduled, name):
    scheduler, config, calls = FLOW[name]
    steps, given = scheduled("sd3", scheduler, config)
    assert len(steps) == calls
    assert [s.timestep for s in steps] == pytest.approx(given, rel=1e-6)
    assert [s.sigma for s in steps] == pytest.approx([t / 1000 for t in given])
    assert 1 >= steps[0].sigma > steps[-1].sigma >= 0
    assert {s.scale for s in steps} == {"flow"}


def test_pndm_calls_51_times_for_50_steps_and_two_of_them_are_one_step(scheduled):
    steps, _ = scheduled("sd", "PNDMScheduler", {"skip_prk_steps": True}, steps=50)
    assert len(steps) == 51
    assert [s.index for s in steps] == [0, 1, *range(1, 50)]


def test_timesteps_rounded_to_bfloat16_and_divided_by_1000_are_still_told_apart(tiny_pipelines):
    """FLUX does so: with 120 steps, neighbours become one number."""
    row = tiny_pipelines.PIPELINES["flux"]
    model = visae.wrap(tiny_pipelines.build("flux"), image_size=row.size, **row.options).to(dtype=torch.bfloat16)
    steps, given = watched(model, lambda: model.generate(["a star"], [0], steps=120, output_type="latent"))
    assert len(set(given)) < 120
    assert [s.index for s in steps] == list(range(120))


def test_statistics_of_few_and_many_steps_meet_on_one_scale(scheduled):
    few, _ = scheduled("sd", "DDIMScheduler", {}, steps=4)
    many, _ = scheduled("sd", "DDIMScheduler", {}, steps=20)
    table = {s.timestep: s.sigma for s in many}
    assert all(table[s.timestep] == s.sigma for s in few if s.timestep in table)
    assert sum(s.timestep in table for s in few) >= 2


def test_several_generations_under_one_clock_each_begin_at_zero(models):
    model = models("sd")

    def run():
        model.generate(["a star"], [0], steps=2, output_type="latent")
        model.generate(["a star"], [0], steps=4, output_type="latent")
        model.generate(["a star"], [0], steps=4, output_type="latent")

    steps, _ = watched(model, run)
    assert [s.call for s in steps] == [*range(3), *range(5), *range(5)]
    assert [s.count for s in steps] == [2] * 3 + [4] * 10


PROMPTS = ["a red square", "blue star"]
LATENT = {"num_inference_steps": 2, "output_type": "latent"}
RAW = [  # pipeline, call without visae's help, branches of the first step's calls
    ("sd", {"prompt": PROMPTS}, ["uncond uncond cond cond"]),
    ("sd", {"prompt": PROMPTS, "guidance_scale": 1.0}, ["none none"]),
    ("sd", {"prompt": "a star", "num_images_per_prompt": 3}, ["uncond uncond uncond cond cond cond"]),
    ("turbo", {"prompt": PROMPTS, "guidance_scale": 0.0}, ["none none"]),
    ("pixart-alpha", {"prompt": PROMPTS, "use_resolution_binning": False, "max_sequence_length": 10},
     ["uncond uncond cond cond"]),
    ("pixart-alpha", {"prompt": PROMPTS, "guidance_scale": 1.0, "use_resolution_binning": False,
                      "max_sequence_length": 10}, ["none none"]),
    ("dit", {"class_labels": [1, 2], "output_type": "pt"}, ["cond cond uncond uncond"]),
    ("dit", {"class_labels": [1, 2], "guidance_scale": 1.0, "output_type": "pt"}, ["none none"]),
    ("sd3", {"prompt": PROMPTS, "guidance_scale": 0.0, "max_sequence_length": 10}, ["none none"]),
    ("flux", {"prompt": PROMPTS, "max_sequence_length": 10, "height": 16, "width": 16}, ["none none"]),
    ("flux-guided", {"prompt": PROMPTS, "negative_prompt": ["a", "a"], "true_cfg_scale": 3.0, "height": 16,
                     "width": 16, "max_sequence_length": 10}, ["cond cond", "uncond uncond"]),
]  # fmt: skip


def test_a_plain_call_after_one_of_visae_is_labelled_by_its_own_batch(models):
    model = models("dit")

    def run():
        model.generate([1, 2], [0, 1], steps=1, output_type="pt")
        model.pipe([1], num_inference_steps=1, output_type="pt")

    steps, _ = watched(model, run)
    assert [s.branch for s in steps] == [("cond", "cond", "uncond", "uncond"), ("cond", "uncond")]


@pytest.mark.parametrize(("name", "request_", "branches"), RAW, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(RAW)])
def test_a_plain_call_of_the_pipeline_is_labelled_too(models, name, request_, branches):
    model = models(name)
    steps, _ = watched(model, lambda: model.pipe(**LATENT | request_))
    found = [" ".join(s.branch) for s in steps]
    assert found == branches * (len(found) // len(branches))


def test_equal_latents_are_not_taken_for_guidance(models):
    model = models("dit")
    steps, _ = watched(model, lambda: model.generate([1, 2], [5, 5], steps=2, guidance=1.0))
    assert all(s.branch == ("none", "none") for s in steps)


def test_codes_are_those_that_tokens_keep(models):
    model = models("dit")
    steps, _ = watched(model, lambda: model.generate([1], [5], steps=1))
    assert steps[0].codes.tolist() == [1, 0]
    assert steps[0].codes.dtype == torch.int8


def test_a_clock_without_a_run_and_a_timestep_off_the_schedule_say_what_is_wrong(models):
    model = models("sd")
    with model.clock() as clock, pytest.raises(RuntimeError, match="unet"):
        _ = clock.now
    model.pipe.scheduler.set_timesteps(4)
    with model.clock(), pytest.raises(ValueError, match="timestep 123"):
        model.pipe.unet(torch.zeros(1, 4, 8, 8), 123, encoder_hidden_states=torch.zeros(1, 12, 16))


def test_noise_levels_meet_the_schedulers_own(models):
    euler = diffusers.EulerDiscreteScheduler()
    euler.set_timesteps(1000)
    for place in (0, 500, 999):
        assert noise_level(euler, float(euler.timesteps[place])) == pytest.approx(float(euler.sigmas[place]), rel=1e-4)
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    for edm in (diffusers.EDMEulerScheduler(), diffusers.EulerDiscreteScheduler(**continuous)):
        edm.set_timesteps(10)
        for place in (0, 4, 9):
            assert noise_level(edm, float(edm.timesteps[place])) == pytest.approx(float(edm.sigmas[place]), rel=1e-4)
        assert noise_scale(edm) == "variance"
    with pytest.raises(ValueError, match="alphas_cumprod"):
        noise_level(diffusers.ScoreSdeVeScheduler(), 1.0)


def test_clocks_within_clocks_all_know_how_many_images_are_made(tiny_pipelines):
    model = visae.wrap(tiny_pipelines.build("dit"), image_size=(16, 16))
    with model.clock() as outer, model.clock() as inner:
        model.generate([3, 7], [1, 1], steps=1, guidance=1.0)  # alike latents, which a count of copies would mistake
    assert outer.now == inner.now
    assert outer.now.branch == ("none", "none")
