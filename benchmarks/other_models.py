"""Models of other libraries, small and with random weights: what `dip_fast.fuse` meets outside.

`requirements/models.txt` lists the libraries; nothing is downloaded.  Both `benchmarks/others.py` and
`tests/test_other_models.py` go through them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Size = tuple[int, ...]


@dataclass(frozen=True)
class OtherModel:
    """A model of a library, how it is made and called, and how many pairs run as one operator in it at any size.

    Attributes
    ----------
    library, path : str
        The package to import, and the class or function in it.
    options : dict
        Its arguments.
    pairs : int
        How many pairs run, where none of them is too small to gain.
    size : tuple of int
        The shape of its first input.
    more : callable
        Returns its other inputs.
    in_float64 : bool
        Whether it can be run in float64; code of some makes float32 tensors.
    """

    library: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    pairs: int = 0
    size: Size = (1, 3, 64, 64)
    more: Callable[[], tuple[Any, ...]] = tuple
    in_float64: bool = True

    def make(self) -> nn.Module:
        """Make the model, always the same one."""
        found: Any = importlib.import_module(self.library)
        for name in self.path.split("."):
            found = getattr(found, name)
        torch.manual_seed(0)
        return found(**self.options).eval()

    def inputs(self) -> tuple[Any, ...]:
        """Return its arguments, always the same ones."""
        torch.manual_seed(1)
        return (torch.rand(self.size), *self.more())


def first_tensor(output: Any) -> torch.Tensor:
    """Return the image that a model returns, out of what it has around it."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def declare_torchvision_operators() -> None:
    """Declare the two operators that torchvision needs to be imported, if its compiled part is of another build.

    The package index has it for CUDA only, which PyTorch for the CPU does not load; no model here uses them.
    """
    global _declared
    if not hasattr(torch.ops.torchvision, "nms"):
        _declared = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declared: torch.library.Library | None = None

SMALL = (1, 3, 32, 32)
ENCODER = {"encoder_name": "resnet18", "encoder_weights": None}
WITHOUT_WEIGHTS = {"weights": None, "weights_backbone": None}
VAE = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
DC = {
    "encoder_block_out_channels": (16, 32),
    "decoder_block_out_channels": (16, 32),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_qkv_multiscales": ((), ()),
    "decoder_qkv_multiscales": ((), ()),
    "upsample_block_type": "interpolate",
    "latent_channels": 4,
}
UNET = {
    "sample_size": 32,
    "block_out_channels": (8, 16, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",) * 3,
    "up_block_types": ("UpBlock2D",) * 3,
    "attention_head_dim": 4,
}
RESNETS = {
    "upsample_type": "resnet",
    "downsample_type": "resnet",
    "up_block_types": ("ResnetUpsampleBlock2D",) * 3,
    "down_block_types": ("ResnetDownsampleBlock2D",) * 3,
}
CONDITIONED = {"cross_attention_dim": 8, "in_channels": 3, "out_channels": 3, "mid_block_type": None}
FLAT = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2}
BASIC = FLAT | {"features": (8, 8, 16, 16, 16, 8)}
LEVELS = FLAT | {"channels": (8, 16, 16), "num_res_blocks": 1, "norm_num_groups": 4, "attention_levels": (False,) * 3}
STRIDES = FLAT | {"channels": (8, 16, 16), "strides": (2, 2)}
DYNAMIC = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (8, 16, 16)}
CODES = {
    "channels": (8, 16),
    "num_res_channels": (8, 16),
    "downsample_parameters": ((2, 4, 1, 1),) * 2,
    "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
}
SWIN = {
    "pretrained": None,
    "upscale": 4,
    "upsampler": "nearest+conv",
    "depths": (2,),
    "num_heads": (2,),
    "embed_dim": 16,
    "img_size": 32,
    "window_size": 8,
}
NCSNPP = {"model_channels": 32, "num_blocks": 1, "channel_mult": [1, 1], "img_resolution": 64, "pretrained": None}


def smp(path: str, pairs: int = 0, size: Size = (1, 3, 64, 64), **options: Any) -> OtherModel:
    """Describe a model of segmentation_models_pytorch."""
    return OtherModel("segmentation_models_pytorch", path, ENCODER | options, pairs, size)


def diffusers(
    path: str, options: dict[str, Any], pairs: int = 0, size: tuple[int, ...] = SMALL, **more: Any
) -> OtherModel:
    """Describe a model of diffusers."""
    return OtherModel("diffusers", path, options, pairs, size, **more)


def monai(path: str, options: dict[str, Any], pairs: int = 0, size: Size = SMALL, **more: Any) -> OtherModel:
    """Describe a model of MONAI."""
    return OtherModel("monai.networks.nets", path, options, pairs, size, **more)


def deepinv(
    path: str, options: dict[str, Any], pairs: int = 0, size: tuple[int, ...] = SMALL, **more: Any
) -> OtherModel:
    """Describe a model of deepinv."""
    return OtherModel("deepinv.models", path, options, pairs, size, **more)


def step() -> tuple[Any, ...]:
    """Return the time step of a diffusion model."""
    return (torch.tensor([7]),)


def step_and_text() -> tuple[Any, ...]:
    """Return the time step and the encoded text of one."""
    return (7, torch.rand(1, 5, 8))


def noise_level() -> tuple[Any, ...]:
    """Return the noise level of a denoiser."""
    return (0.1,)


def noise_levels() -> tuple[Any, ...]:
    """Return a noise level for each image of a batch."""
    return (torch.tensor([0.1]),)


MODELS = {
    "smp Unet": smp("Unet", 5),
    "smp Unet, bilinear": smp("Unet", 5, decoder_interpolation="bilinear"),
    "smp Unet, attention": smp("Unet", 1, decoder_attention_type="scse"),
    "smp Unet, mobilenet": smp("Unet", 5, encoder_name="mobilenet_v2"),
    "smp Unet, efficientnet": smp("Unet", 5, encoder_name="efficientnet-b0"),
    "smp UnetPlusPlus": smp("UnetPlusPlus", 11),
    "smp MAnet": smp("MAnet", 1),
    "smp Linknet": smp("Linknet"),
    "smp FPN": smp("FPN"),
    "smp PSPNet": smp("PSPNet"),
    "smp PAN": smp("PAN", size=(1, 3, 128, 128)),
    "smp DeepLabV3Plus": smp("DeepLabV3Plus"),
    "smp UPerNet": smp("UPerNet", 1),
    "smp Segformer": smp("Segformer"),
    "diffusers AutoencoderKL": diffusers("AutoencoderKL", VAE, 1),
    "diffusers VQModel": diffusers("VQModel", VAE | {"num_vq_embeddings": 16}, 1),
    "diffusers AutoencoderTiny": diffusers("AutoencoderTiny", {}, 3, in_float64=False),
    "diffusers AutoencoderDC": diffusers("AutoencoderDC", DC, 1),
    "diffusers UNet2DModel": diffusers("UNet2DModel", UNET, 2, more=step),
    "diffusers UNet2DModel, resnets": diffusers("UNet2DModel", UNET | RESNETS, more=step),
    "diffusers UNet2DConditionModel": diffusers("UNet2DConditionModel", UNET | CONDITIONED, 2, more=step_and_text),
    "diffusers UNet2DConditionModel, odd": diffusers(
        "UNet2DConditionModel", UNET | CONDITIONED, 1, (1, 3, 34, 30), more=step_and_text
    ),
    "torchvision fcn": OtherModel("torchvision", "models.segmentation.fcn_resnet50", WITHOUT_WEIGHTS),
    "torchvision lraspp": OtherModel("torchvision", "models.segmentation.lraspp_mobilenet_v3_large", WITHOUT_WEIGHTS),
    "monai UNet": monai("UNet", STRIDES),
    "monai BasicUNet": monai("BasicUNet", BASIC | {"upsample": "nontrainable"}),
    "monai BasicUNet, pixel shuffle": monai("BasicUNet", BASIC | {"upsample": "pixelshuffle"}),
    "monai BasicUNetPlusPlus": monai("BasicUNetPlusPlus", BASIC | {"upsample": "nontrainable"}),
    "monai AttentionUnet": monai("AttentionUnet", STRIDES),
    "monai FlexibleUNet": monai(
        "FlexibleUNet", {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}, size=(1, 3, 64, 64)
    ),
    "monai SegResNet": monai("SegResNet", FLAT | {"init_filters": 8}),
    "monai DynUNet": monai("DynUNet", FLAT | DYNAMIC),
    "monai AutoencoderKL": monai("AutoencoderKL", LEVELS | {"latent_channels": 3}, 2),
    "monai VQVAE": monai("VQVAE", FLAT | CODES, in_float64=False),
    "monai DiffusionModelUNet": monai("DiffusionModelUNet", LEVELS, 2, more=step),
    "deepinv ConvDecoder": deepinv(
        "ConvDecoder", {"img_size": (3, 64, 64), "in_size": (8, 8), "layers": 4, "channels": 16}, 3, (1, 16, 8, 8)
    ),
    "deepinv UNet": deepinv("UNet", {"in_channels": 3, "out_channels": 3, "scales": 3}, 2),
    "deepinv DRUNet": deepinv("DRUNet", {"nc": (8, 8, 16, 16), "nb": 1, "pretrained": None}, more=noise_level),
    "deepinv DiffUNet": deepinv("DiffUNet", {"pretrained": None}, more=noise_level, in_float64=False),
    "deepinv NCSNpp": deepinv("NCSNpp", NCSNPP, size=(1, 3, 64, 64), more=noise_levels, in_float64=False),
    "deepinv SwinIR": deepinv("SwinIR", SWIN),
    "Real-ESRGAN": OtherModel(
        "spandrel.architectures.ESRGAN", "ESRGAN", {"num_filters": 16, "num_blocks": 2}, 2, SMALL
    ),
    "Real-ESRGAN, x2": OtherModel(
        "spandrel.architectures.ESRGAN", "ESRGAN", {"num_filters": 16, "num_blocks": 1, "scale": 2}, 1, SMALL
    ),
}
