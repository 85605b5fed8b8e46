"""Everything this pack borrows from ComfyUI's inside, in one place.

Modules are borrowed, not names: ComfyUI replaces some of their members at start (`CoreModelPatcher`). `BORROWED` lists
what is used of each; a test looks for all of it on the oldest and the newest supported ComfyUI.
"""

import comfy.cli_args as cli_args
import comfy.conds as conds
import comfy.context_windows as context_windows
import comfy.controlnet as controlnet
import comfy.diffusers_convert as diffusers_convert
import comfy.latent_formats as latent_formats
import comfy.ldm.modules.attention as attention
import comfy.ldm.modules.diffusionmodules.model as model
import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
import comfy.model_base as model_base
import comfy.model_management as model_management
import comfy.model_patcher as model_patcher
import comfy.model_sampling as model_sampling
import comfy.ops as ops
import comfy.patcher_extension as patcher_extension
import comfy.sample as sample
import comfy.sampler_helpers as sampler_helpers
import comfy.samplers as samplers
import comfy.sd as sd
import comfy.sd1_clip as sd1_clip
import comfy.supported_models as supported_models
import comfy.supported_models_base as supported_models_base
import comfy.text_encoders.sd3_clip as sd3_clip
import comfy.utils as utils
import latent_preview

BORROWED = {
    attention: ("optimized_attention",),
    cli_args: ("args",),
    conds: ("CONDNoiseShape", "CONDRegular"),
    context_windows: (
        "ContextFuseMethods",
        "ContextSchedules",
        "IndexListContextHandler",
        "create_prepare_sampling_wrapper",
        "get_matching_context_schedule",
        "get_matching_fuse_method",
    ),
    controlnet: ("ControlBase",),
    diffusers_convert: ("convert_vae_state_dict",),
    model: ("Decoder",),
    openaimodel: ("ResBlock", "SpatialTransformer", "UNetModel", "forward_timestep_embed"),
    latent_formats: ("LatentFormat", "SD15"),
    model_base: ("BaseModel", "ModelType"),
    model_management: (
        "VRAMState",
        "archive_model_dtypes",
        "get_torch_device",
        "intermediate_device",
        "throw_exception_if_processing_interrupted",
        "unet_dtype",
        "unet_manual_cast",
        "unet_offload_device",
        "vae_device",
        "vae_dtype",
        "vae_offload_device",
        "vram_state",
    ),
    model_patcher: ("CoreModelPatcher", "ModelPatcher"),
    model_sampling: ("EPS", "ModelSamplingDiscrete"),
    ops: ("CastWeightBiasOp", "cast_bias_weight", "disable_weight_init", "manual_cast", "uncast_bias_weight"),
    patcher_extension: ("WrapperExecutor", "WrappersMP", "get_all_wrappers"),
    latent_preview: ("get_previewer",),
    sample: ("fix_empty_latent_channels", "prepare_noise", "sample_custom"),
    sampler_helpers: ("convert_cond",),
    samplers: ("CFGGuider", "KSAMPLER", "calculate_sigmas", "sampler_object"),
    sd: ("CLIP", "VAE", "CLIPType", "load_text_encoder_state_dicts"),
    sd1_clip: ("SD1ClipModel", "SD1Tokenizer", "SDClipModel", "SDTokenizer"),
    sd3_clip: ("T5XXLModel", "T5XXLTokenizer"),
    supported_models: ("SD15",),
    supported_models_base: ("BASE", "ClipTarget"),
    utils: ("ProgressBar", "calculate_parameters", "common_upscale", "resize_to_batch_size", "weight_dtype"),
}

__all__ = [module.__name__.rsplit(".", 1)[-1] for module in BORROWED] + ["BORROWED"]
