"""What the networks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dip_fast.networks.network_input import NetworkInput
    from dip_fast.programs.folding import Folder, Value

EPSILON = 1e-5  # of every batch norm, added to the variance
ACTIVATIONS = ("leaky_relu", "elu", "swish")


class Fusible(nn.Module):
    """A block that may have a fused form: the same function of the same parameters, by the project's operators.

    Attributes
    ----------
    obstacle : str or None
        Why these sizes and modes have no fused form; empty if they have one.  None for a part of another block, which
        decides for both.
    fused : bool
        Whether the fused form is in use.
    computes_beside : bool
        Whether PyTorch computes much beside the operators of the fused form, and needs its threads.
    stores_image : bool
        Whether the operators of the fused form store their image in the dtype that they are told.
    """

    obstacle: str | None = ""
    fused = False
    computes_beside = False
    stores_image = False


class Network(nn.Module):
    """A network that draws an image from z.

    Attributes
    ----------
    multiple : int
        The sides of the image are multiples of it.
    corrects : bool
        Whether the image is that in the first channels of z with a correction, see `lessened`; False by default.
    """

    multiple: int
    corrects: bool = False

    def fold(self, folder: Folder, z: Value) -> Value:
        """Compute the image from z as `forward` does, with a folder that writes each layer down.

        Model files are written from these layers, see `dip_fast.programs.folding`; a network without this method can be
        fitted alone.

        Parameters
        ----------
        folder : Folder
        z : Value
            The network input.

        Returns
        -------
        Value
            The image, before it is cropped to the picture.
        """
        raise TypeError(f"network must have a method fold(folder, z) to be folded; {type(self).__name__} has none")

    def blocks(self) -> dict[str, str]:
        """Blocks by name, with the reason why they have no fused form; empty where they have one."""
        blocks = ((name, module) for name, module in self.named_modules() if isinstance(module, Fusible))
        return {name: block.obstacle for name, block in blocks if block.obstacle is not None}

    def fusible(self) -> list[str]:
        """Names of the blocks that have a fused form."""
        return [name for name, obstacle in self.blocks().items() if not obstacle]

    def use(self, engine: str) -> Self:
        """Choose the engine: the same function of the same parameters, computed plainly or fused where it can be.

        Raises
        ------
        ValueError
            For the fused engine of a network without a fusible block.
        """
        if engine == "fused" and not self.fusible():
            raise ValueError("engine must be plain for this network: no block of it has a fused form")
        for module in self.modules():
            if isinstance(module, Fusible):
                module.fused = engine == "fused" and module.obstacle == ""
        return self

    def is_fused(self) -> bool:
        """Whether a block runs in its fused form."""
        return any(isinstance(module, Fusible) and module.fused for module in self.modules())

    def stores_images(self) -> bool:
        """Whether a fused block stores its image in the dtype of `dip_fast.ops.norm_conv.stored_as`."""
        return any(module.fused and module.stores_image for module in self.modules() if isinstance(module, Fusible))

    def is_wholly_fused(self) -> bool:
        """Whether every block runs in its fused form, and hardly anything is computed beside the operators."""
        beside = any(isinstance(module, Fusible) and module.computes_beside for module in self.modules())
        return self.is_fused() and not beside and not any(self.blocks().values())

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture of ``height x width``."""
        return cover(height, self.multiple), cover(width, self.multiple)

    def lessened(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Return weights that draw hardly more than a share of the correction that others do; of one that `corrects`.

        Parameters
        ----------
        weights : mapping of str to Tensor
            By the parameters' names.
        share : float
            In [0, 1].
        """
        raise TypeError(f"{type(self).__name__} corrects its input and must define lessened(weights, share)")

    def settled(self, z: NetworkInput) -> tuple[Network, NetworkInput]:
        """Return the network and the input that a result keeps, once the fit is over: by default these."""
        return self, z


@dataclass
class Convolved:
    """The output of a convolution, whose batch norm and LeakyReLU are left to the operator that reads it.

    Attributes
    ----------
    tensor : Tensor, (1, C, H, W)
    statistics : Tensor, (2, C)
        Mean and biased variance, float64.
    norm : BatchNorm2d
    slope : float
        Negative slope of the LeakyReLU.
    """

    tensor: Tensor
    statistics: Tensor
    norm: nn.BatchNorm2d
    slope: float

    def activated(self) -> Tensor:
        """Apply the batch norm and the LeakyReLU."""
        # PyTorch's layers on a CPU compute in float32, as the operators do, whatever images are stored as.
        tensor = self.tensor if self.tensor.is_cuda else full(self.tensor)
        return nn.functional.leaky_relu(self.norm(tensor), self.slope)


Image = Tensor | Convolved  # what blocks pass on


def activated(x: Image) -> Tensor:
    """Apply the batch norm and the activation, where they are still to be applied."""
    return x.activated() if isinstance(x, Convolved) else x


def is_supported(x: Image) -> bool:
    """Whether the operators read such an image: a single one, in float32, float64 or bfloat16.

    They read none under transforms of ``torch.func`` and in forward-mode differentiation, for which they have no rules.
    """
    from dip_fast.ops.transforms import is_transformed  # here, since it loads or builds the extension

    tensor = x.tensor if isinstance(x, Convolved) else x
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    return tensor.shape[0] == 1 and tensor.dtype in dtypes and not is_transformed()


def operand(x: Image, slope: float) -> Any:
    """Turn an image into an operator's argument; the operator applies norm and activation if it has the same slope."""
    from dip_fast import ops  # here, since it loads or builds the extension

    if isinstance(x, Convolved) and x.slope == slope:
        return ops.NormedInput(x.tensor, x.statistics, x.norm.weight, x.norm.bias)
    return ops.NormedInput(activated(x))


def operands(deep: Image, skip: Image | None, slope: float) -> tuple[Any, Any]:
    """Turn images that one operator joins into its arguments, of one dtype: float32 if one is of PyTorch's layers."""
    images = [operand(image, slope) for image in (deep, skip) if image is not None]
    if len({image.tensor.dtype for image in images}) > 1:
        images = [image._replace(tensor=full(image.tensor)) for image in images]
    return images[0], images[1] if skip is not None else None


class _WithoutGradient(torch.autograd.Function):
    """The first argument, as a function that does not depend on the others: they get gradients of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


def without_gradient(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return x, and let the parameters, on which it does not depend, have gradients of zero in place of none."""
    if not parameters:
        return x
    from dip_fast.ops.transforms import is_transformed  # here, since it loads or builds the extension

    if is_transformed():  # every block runs plainly then, and uses its parameters
        return x
    result: Tensor = _WithoutGradient.apply(x, *parameters)
    return result


def full(x: Tensor) -> Tensor:
    """Convert a tensor of fewer than 32 bits a value to float32."""
    return x.float() if x.element_size() < 4 else x


def plain_dtype(image: Tensor) -> torch.dtype | None:
    """Dtype of what an operator makes of an image for PyTorch's layers: float32 at least on a CPU, else the image's."""
    return None if image.is_cuda else torch.promote_types(image.dtype, torch.float32)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm that always uses the statistics of the one image, in fitting and in inference."""
    return nn.BatchNorm2d(channels, EPSILON, track_running_stats=False)


def make_activation(name: str, negative_slope: float) -> nn.Module | None:
    """Make one of `ACTIVATIONS`; None for the LeakyReLU that a `Block` has by itself."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return {"leaky_relu": None, "elu": nn.ELU(inplace=True), "swish": nn.SiLU()}[name]


class Lanczos(nn.Module):
    """Reduction to half the size by a Lanczos filter: ``(N, C, H, W)`` to ``(N, C, H/2, W/2)``, edges replicated.

    Parameters
    ----------
    lobes : int
        2 or 3, on each side.
    """

    kernel: Tensor

    def __init__(self, lobes: int) -> None:
        super().__init__()
        places = (torch.arange(4 * lobes, dtype=torch.float64, device="cpu") - (4 * lobes - 1) / 2) / 2
        weights = torch.sinc(places) * torch.sinc(places / lobes)
        kernel = (torch.outer(weights, weights) / weights.sum() ** 2).float()
        self.register_buffer("kernel", kernel, persistent=False)  # it is no weight
        self.padding = 2 * lobes - 1

    def forward(self, x: Tensor) -> Tensor:
        """Filter, and keep every other pixel."""
        channels = x.shape[1]
        weight = self.kernel.to(x.dtype).expand(channels, 1, *self.kernel.shape)
        padded = nn.functional.pad(x, (self.padding,) * 4, "replicate")
        return nn.functional.conv2d(padded, weight, stride=2, groups=channels)

    def fold(self, folder: Folder, x: Value, name: str) -> Value:
        """Fold it as a convolution of all channels, most of whose weights are 0."""
        channels, side = x.tensor.shape[1], self.kernel.shape[0]
        conv = nn.Conv2d(channels, channels, side, 2, self.padding, bias=False, padding_mode="replicate", device="meta")
        conv.weight = nn.Parameter(torch.eye(channels)[..., None, None] * self.kernel.cpu())
        return folder.conv(x, conv, name)


def pooling(downsampling: str) -> nn.Module | None:
    """Make what follows the convolution that reduces the size; None where its stride does."""
    if downsampling == "stride":
        return None
    if downsampling.startswith("lanczos"):
        return Lanczos(int(downsampling[-1]))
    return nn.AvgPool2d(2) if downsampling == "average" else nn.MaxPool2d(2)


class Block(Fusible):
    """Convolution, pooling if any, batch norm, LeakyReLU or another activation: ``conv.*`` and ``norm.*``."""

    stores_image = True

    def __init__(
        self,
        conv: nn.Conv2d | nn.ConvTranspose2d,
        negative_slope: float = 0.0,
        *,
        pool: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.pool = pool
        self.norm = batch_norm(conv.out_channels)
        self.activation = activation or nn.LeakyReLU(negative_slope, inplace=True)
        self.computes_beside = pool is not None
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        if isinstance(conv, nn.ConvTranspose2d):
            self.obstacle = "its convolution is transposed"
        elif not isinstance(self.activation, nn.LeakyReLU):
            self.obstacle = "its activation is no LeakyReLU"
        elif (kernel, stride) not in ((1, 1), (3, 1), (3, 2)):
            self.obstacle = f"its kernel is {kernel}x{kernel}" + (f" with stride {stride}" if stride > 1 else "")

    def forward(self, x: Image) -> Image:
        """``(N, in, H, W)`` to ``(N, out, ...)``."""
        if not (self.fused and is_supported(x)):
            return self.finish(self.conv(activated(x)))
        from dip_fast import ops  # here, since it loads or builds the extension

        assert isinstance(self.activation, nn.LeakyReLU)
        slope = self.activation.negative_slope
        image = operand(x, slope)
        # Without the bias, which the batch norm would take away again.
        output, statistics = ops.norm_conv2d(
            image, self.conv.weight, slope=slope, eps=self.norm.eps, stride=self.conv.stride[0],
            padding_mode=str(self.conv.padding_mode), dtype=None if self.pool is None else plain_dtype(image.tensor),
        )  # fmt: skip
        return Convolved(output, statistics, self.norm, slope) if self.pool is None else self.finish(output)

    def finish(self, convolved: Tensor) -> Tensor:
        """Apply what follows the convolution."""
        pooled = convolved if self.pool is None else self.pool(convolved)
        result: Tensor = self.activation(self.norm(pooled))
        return result

    def fold(self, folder: Folder, x: Value, name: str) -> Value:
        """Fold the block, with layers called ``name.conv`` and so on."""
        if isinstance(self.conv, nn.ConvTranspose2d):
            convolved = folder.transposed_conv(x, self.conv, f"{name}.conv")
        else:
            convolved = folder.conv(x, self.conv, f"{name}.conv")
        return self.fold_finish(folder, convolved, name)

    def fold_finish(self, folder: Folder, convolved: Value, name: str) -> Value:
        """Fold what follows the convolution."""
        if isinstance(self.pool, Lanczos):
            convolved = self.pool.fold(folder, convolved, f"{name}.pool")
        elif self.pool is not None:
            kind = "average_pool" if isinstance(self.pool, nn.AvgPool2d) else "max_pool"
            convolved = folder.layer(kind, f"{name}.pool", convolved)
        normed = folder.norm(convolved, self.norm)
        for kind, module in (("sigmoid", nn.Sigmoid), ("elu", nn.ELU), ("swish", nn.SiLU)):
            if isinstance(self.activation, module):
                return folder.layer(kind, f"{name}.{kind}", normed)
        assert isinstance(self.activation, nn.LeakyReLU)
        return folder.layer("leaky_relu", f"{name}.relu", normed, slope=float(self.activation.negative_slope))


def cover(side: int, multiple: int, least: int = 2) -> int:
    """Smallest multiple of ``multiple``, at least ``least`` times it, that is no less than ``side``.

    Two pixels are the least at the deepest scale: reflection and batch norm need as many.
    """
    return multiple * max(least, -(-side // multiple))
