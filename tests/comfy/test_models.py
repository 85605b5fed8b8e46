"""The MODEL as stock nodes patch, merge, save and offload it."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def lora(comfy):
    """Name of a LoRA over every kind of layer that the networks have."""
    model = comfy.run("WeftLoadCheckpoint", checkpoint="toy.safetensors")[0].model.diffusion_model
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)):
            rows, columns = module.weight.shape[:2]
            kernel = module.weight.shape[2:]
            tensors[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(rows, 2, *[1 for _ in kernel])
            tensors[f"diffusion_model.{name}.lora_down.weight"] = 0.1 * torch.randn(2, columns, *kernel)
    folder = comfy.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "toy_lora.safetensors")
    return "toy_lora.safetensors"


def with_lora(comfy, model, name, strength):
    return comfy.run("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength)[0]


def test_lora_changes_the_video_and_leaves_no_trace(sample, toy, comfy, lora, caplog):
    before = sample()
    patched = with_lora(comfy, toy.model, lora, 1.0)
    assert (sample(patched) - before).abs().mean() > 0.1
    assert "not loaded" not in caplog.text
    assert torch.equal(sample(with_lora(comfy, toy.model, lora, 0.0)), before)
    assert torch.equal(sample(), before), "the model without LoRA is what it was, bit for bit"


def test_lora_reaches_every_weight_it_names(toy, comfy, lora):
    patched = with_lora(comfy, toy.model, lora, 1.0)
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)
    layers = sum(isinstance(module, layers) for module in toy.model.model.diffusion_model.modules())
    assert layers > 40 and len(patched.patches) == layers


def test_a_partly_loaded_model_with_lora_gives_the_same_video(sample, toy, comfy, lora):
    """As on a GPU that is too small: weights stay behind and are brought, cast and patched at every call."""
    patched = with_lora(comfy, toy.model, lora, 1.0)
    x, context = torch.randn(1, 4, 4, 8, 8, generator=torch.manual_seed(0)), toy.positive[0][0]

    def predict(memory):
        patched.unpatch_model()
        patched.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=memory)
        lazy = [module for module in patched.model.modules() if getattr(module, "weight_function", None)]
        return patched.model.apply_model(x, torch.tensor([2.0]), c_crossattn=context), len(lazy)

    whole, none_lazy = predict(0)
    partial, lazy = predict(1024)
    assert none_lazy == 0 and lazy > 40
    # The LoRA's product is added at another place, in another order.
    assert (whole - partial).abs().max() < 1e-4 * whole.abs().max()
    patched.unpatch_model()


@pytest.mark.parametrize("checkpoint", ["toy.safetensors", "toy_uncond.safetensors", "toy_masked.safetensors"])
def test_every_weight_is_one_that_comfyui_can_move_and_cast(comfy, checkpoint):
    """Plain torch layers and bare parameters would stay on the wrong device when a model is loaded in part."""
    model, clip, vae = comfy.run("WeftLoadCheckpoint", checkpoint=checkpoint)
    networks = [model.model.diffusion_model, vae.first_stage_model]
    networks += [clip.cond_stage_model] if clip else []
    for network in networks:
        holders = [module for module in network.modules() if [*module.parameters(recurse=False)]]
        plain = {type(module).__name__ for module in holders if not hasattr(module, "comfy_cast_weights")}
        # ComfyUI's own text encoder class holds two of its own.
        assert holders and plain <= {"CaptionClipModel"}, plain
    for network in networks[:2]:
        assert not [*network.buffers()]


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 0.0), ("fp16", 0.01), ("bf16", 0.1), ("fp8_e4m3fn", 0.5)])
def test_dtypes(comfy, toy, sample, dtype, error):
    """The file is fp16, so fp32 is exact; the others differ by their rounding, in proportion to the video."""
    model = comfy.run("WeftLoadCheckpoint", checkpoint="toy.safetensors", dtype=dtype)[0]
    stored = {parameter.dtype for parameter in model.model.diffusion_model.parameters()}
    assert stored == {comfy.ours("model_loaders.bridge.operations").torch_dtype_of(dtype)}
    exact = comfy.run("WeftLoadCheckpoint", checkpoint="toy.safetensors", dtype="fp32")[0]
    found, expected = sample(model, steps=2), sample(exact, steps=2)
    assert found.isfinite().all()
    assert (found - expected).std() <= error * expected.std()


def test_weights_in_low_precision_are_cast_before_every_use(comfy, toy):
    """bf16 in memory and computing in fp32 equals a fp32 model of rounded weights: nothing is used uncast."""
    path = str(comfy.base / "models" / "checkpoints" / "toy.safetensors")
    ours = comfy.ours("model_loaders.bridge.model")
    cast = ours.load_model(path, ours.LoadOptions(dtype=torch.bfloat16))
    assert cast.model.manual_cast_dtype == torch.float32
    rounded = ours.load_model(path, ours.LoadOptions(dtype=torch.float32))
    for parameter in rounded.model.diffusion_model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    x, context = torch.randn(1, 4, 4, 8, 8, generator=torch.manual_seed(0)), toy.positive[0][0]
    outputs = [patcher.model.apply_model(x, torch.tensor([2.0]), c_crossattn=context) for patcher in (cast, rounded)]
    assert torch.equal(*outputs)


def test_layers_without_weights_until_they_are_loaded(comfy, sample, monkeypatch):
    """With dynamic video memory ComfyUI's layers have no weights when they are made."""
    from comfy import memory_management

    before = sample()
    with monkeypatch.context() as patch:
        patch.setattr(memory_management, "aimdo_enabled", True)
        # Weights then keep the dtype of the file, fp16, and are cast at every use.
        model, clip, vae = comfy.run("WeftLoadCheckpoint", checkpoint="toy.safetensors", dtype="fp16")
    texts = [comfy.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red circle", "")]
    latent = sample(model, positive=texts[0], negative=texts[1])
    assert torch.equal(latent, before)
    assert comfy.run("VAEDecode", samples={"samples": latent}, vae=vae)[0].isfinite().all()


# Files


def test_a_saved_lora_is_in_the_weights(comfy, toy, sample, lora):
    patched = with_lora(comfy, toy.model, lora, 0.5)
    comfy.run("ModelSave", model=patched, filename_prefix="saved_lora")
    again = comfy.run("WeftLoadDiffusionModel", model_name=comfy.saved("diffusion_models", "saved_lora"))[0]
    expected = sample(patched)
    assert (sample(again) - expected).std() < 0.01 * expected.std()
    assert (sample() - expected).std() > 0.1 * expected.std()


def test_vae_alone(comfy, toy):
    vae = comfy.run("WeftLoadVAE", vae_name=shared(comfy, "vae"))[0]
    latent = {"samples": torch.randn(1, 4, 2, 4, 4, generator=torch.manual_seed(0))}
    assert torch.equal(*(comfy.run("VAEDecode", samples=latent, vae=found)[0] for found in (vae, toy.vae)))


def shared(comfy, folder):
    """Put the toy checkpoint into another model folder."""
    target = comfy.base / "models" / folder / "toy_again.safetensors"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(comfy.base / "models" / "checkpoints" / "toy.safetensors", target)
    return target.name


def test_merging(comfy, toy, sample, lora):
    other = with_lora(comfy, toy.model, lora, 1.0)
    halves = comfy.run("ModelMergeSimple", model1=toy.model, model2=other, ratio=0.5)[0]
    first = comfy.run("ModelMergeSimple", model1=toy.model, model2=other, ratio=1.0)[0]
    assert torch.equal(sample(first), sample())
    assert not torch.equal(sample(halves), sample())


def test_a_clone_is_reloaded_from_its_file(comfy, sample):
    """Hooks and several GPUs ask for it by `cached_patcher_init`."""
    model = comfy.run("WeftLoadCheckpoint", checkpoint="toy.safetensors")[0]
    load, arguments = model.cached_patcher_init
    again = load(*arguments, disable_dynamic=True)
    assert again is not model and torch.equal(sample(again), sample(model))


def test_lora_by_hook_on_one_prompt(comfy, toy, sample, lora):
    hooks = comfy.run("CreateHookLoraModelOnly", lora_name=lora, strength_model=1.0)[0]
    properties = {"strength": 1.0, "set_cond_area": "default", "hooks": hooks}
    hooked = comfy.run("ConditioningSetProperties", cond_NEW=toy.positive, **properties)[0]
    before = sample()
    assert not torch.equal(sample(positive=hooked), before)
    assert torch.equal(sample(), before)


# Memory


@pytest.mark.parametrize("checkpoint", ["toy.safetensors", "toy_uncond.safetensors"])
def test_the_memory_estimate_covers_a_forward_pass(comfy, toy, checkpoint):
    """Peak of live tensors by torch's profiler; wide, since ComfyUI's attention for CPUs holds whole matrices."""
    model = comfy.run("WeftLoadCheckpoint", checkpoint=checkpoint, dtype="fp32")[0].model
    x = torch.randn(1, 4, 16, 32, 32)
    conditions = {"c_crossattn": toy.positive[0][0]} if checkpoint == "toy.safetensors" else {}
    peak = peak_bytes(lambda: model.apply_model(x, torch.tensor([2.0]), **conditions))
    estimate = model.memory_required([1, *x.shape[1:]])
    assert peak / 3 < estimate < 3 * peak


def peak_bytes(call) -> int:
    """Most bytes of tensors alive at once during a call, beyond those before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    assert changes
    live = peak = 0
    for _, size in changes:
        live += size
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("spacing", ["roots", "even"])
def test_a_model_is_sampled_on_the_schedule_of_its_file(comfy, spacing):
    checkpoint = comfy.ours("model_loaders.checkpoint").read(comfy.base / "models" / "checkpoints" / "toy.safetensors")
    schedule = dataclasses.replace(checkpoint.schedule, spacing=spacing)
    model = comfy.ours("model_loaders.bridge.model").make_model(dataclasses.replace(checkpoint, schedule=schedule))
    sigmas = model.get_model_object("model_sampling").sigmas
    torch.testing.assert_close(sigmas, schedule.sigmas().float(), rtol=1e-4, atol=1e-5)
