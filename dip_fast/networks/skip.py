"""The encoder-decoder with skip branches of Ulyanov, Vedaldi and Lempitsky (arXiv 1711.10925)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from dip_fast.networks.at_once import AtOnce
from dip_fast.networks.layers import (
    Block,
    Convolved,
    Fusible,
    Image,
    Network,
    activated,
    batch_norm,
    cover,
    full,
    is_supported,
    make_activation,
    operand,
    operands,
    plain_dtype,
    pooling,
    without_gradient,
)
from dip_fast.values import integer

if TYPE_CHECKING:
    from dip_fast.programs.folding import Folder, Value

PaddingMode = Literal["reflect", "zeros", "replicate"]

UPSAMPLING = ("nearest", "bilinear")
DOWNSAMPLING = ("stride", "average", "max", "lanczos2", "lanczos3")
# Channels of a skip branch whose convolution is computed directly, with that of the upsampled image: on a CPU after
# bilinear upsampling, on a GPU always.  More have one of their own, with fewer multiplications.
MAX_DIRECT_SKIP_CHANNELS = 16


class Scale(Fusible):
    """One scale: ``(N, in_channels, H, W) -> (N, up, H, W)``, with the next scale inside at half the size.

    The sub-modules are registered in the order in which the original network registers its own, so that weights
    can be loaded from it one after the other.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        down: int,
        up: int,
        skip: int,
        inner: Scale | None,
        inner_channels: int,
        kernel_down: int,
        kernel_up: int,
        kernel_skip: int,
        conv1x1: bool,
        upsampling: str,
        downsampling: str,
        padding_mode: PaddingMode,
        negative_slope: float,
        activation: str,
    ) -> None:
        super().__init__()

        def block(conv: nn.Conv2d, pool: nn.Module | None = None) -> Block:
            return Block(conv, negative_slope, pool=pool, activation=make_activation(activation, negative_slope))

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode=padding_mode)

        self.skip = block(conv(in_channels, skip, kernel_skip)) if skip else None
        pool = pooling(downsampling)
        self.reduce = block(conv(in_channels, down, kernel_down, 2 if pool is None else 1), pool)
        self.deepen = block(conv(down, down, kernel_down))
        self.inner = inner
        self.upsample = nn.Upsample(scale_factor=2, mode=upsampling)
        self.norm = batch_norm(skip + inner_channels)
        self.merge = block(conv(skip + inner_channels, up, kernel_up))
        self.mix = block(conv(up, up, 1)) if conv1x1 else None
        self.skip_channels = skip
        self.is_thin = skip <= MAX_DIRECT_SKIP_CHANNELS
        self.computes_beside = not (self.is_thin or upsampling == "nearest")
        self.merge.obstacle = None
        if kernel_up != 3:
            self.obstacle = f"its kernel is {kernel_up}x{kernel_up}"
        elif activation != "leaky_relu":
            self.obstacle = "its activation is no LeakyReLU"

    def forward(self, x: Image) -> Image:
        """Draw this scale from ``x``, ``(N, in_channels, H, W)``."""
        deep = self.deepen(self.reduce(x))  # (N, down, H/2, W/2)
        if self.inner is not None:
            deep = self.inner(deep)
        skip = None if self.skip is None else self.skip(x)  # (N, skip, H, W)
        merged = self._merge_fused(skip, deep) if self.fused and is_supported(deep) else self._merge(skip, deep)
        return merged if self.mix is None else self.mix(merged)

    def _merge(self, skip: Image | None, deep: Image) -> Image:
        """Upsample, concatenate, normalise and convolve: ``(N, up, H, W)``."""
        joined = self.upsample(activated(deep))
        if skip is not None:
            joined = torch.cat((activated(skip), joined), dim=1)
        return self.merge.finish(self.merge.conv(self.norm(joined)))

    def _merge_fused(self, skip: Image | None, deep: Image) -> Image:
        """Do the same without the upsampled image: ``conv(cat(s, u)) = conv_s(s) + conv_u(u)``."""
        from dip_fast import ops  # here, since it loads or builds the extension

        conv, norm = self.merge.conv, self.norm
        assert isinstance(self.merge.activation, nn.LeakyReLU)
        slope = self.merge.activation.negative_slope
        joins = self.is_thin or (self.upsample.mode == "nearest" and not norm.weight.is_cuda)
        if skip is not None and not joins:
            return self._merge_apart(skip, deep, slope)
        output, statistics = ops.norm_upsample_conv2d(
            *operands(deep, skip, slope), norm.weight, norm.bias, conv.weight,
            slope=slope, eps=norm.eps, mode=self.upsample.mode, padding_mode=str(conv.padding_mode),
        )  # fmt: skip
        return Convolved(output, statistics, self.merge.norm, slope)

    def _merge_apart(self, skip: Image, deep: Image, slope: float) -> Tensor:
        """Do the same with a convolution for each part, for a skip branch of many channels."""
        from dip_fast import ops  # here, since it loads or builds the extension

        conv, norm, of_skip = self.merge.conv, self.norm, slice(self.skip_channels)
        of_deep, padding_mode = slice(self.skip_channels, None), str(conv.padding_mode)
        image = operand(deep, slope)
        dtype = plain_dtype(image.tensor)
        convolved, _ = ops.norm_upsample_conv2d(
            image, None, norm.weight[of_deep], norm.bias[of_deep], conv.weight[:, of_deep],
            slope=slope, eps=norm.eps, mode=self.upsample.mode, padding_mode=padding_mode, dtype=dtype,
        )  # fmt: skip
        normed = nn.functional.batch_norm(
            activated(skip), None, None, norm.weight[of_skip], norm.bias[of_skip], training=True, eps=norm.eps
        )
        beside, _ = ops.norm_conv2d(
            ops.NormedInput(normed), conv.weight[:, of_skip], padding_mode=padding_mode, dtype=dtype
        )
        return self.merge.finish(convolved + beside)

    def fold(self, folder: Folder, x: Value, name: str) -> Value:
        """Fold this scale, with the next one inside; see `Network.fold`."""
        deep = self.deepen.fold(folder, self.reduce.fold(folder, x, f"{name}.reduce"), f"{name}.deepen")
        if self.inner is not None:
            deep = self.inner.fold(folder, deep, f"{name}.inner")
        skip = None if self.skip is None else self.skip.fold(folder, x, f"{name}.skip")
        fold_merge = self._fold_merge_split if self.merge.conv.kernel_size[0] == 3 else self._fold_merge
        merged = self.merge.fold_finish(folder, fold_merge(folder, skip, deep, name), f"{name}.merge")
        return merged if self.mix is None else self.mix.fold(folder, merged, f"{name}.mix")

    def _fold_merge(self, folder: Folder, skip: Value | None, deep: Value, name: str) -> Value:
        """Fold `_merge` up to its convolution."""
        assert isinstance(self.merge.conv, nn.Conv2d)
        joined = folder.layer("upsample", f"{name}.upsample", deep, mode=self.upsample.mode)
        if skip is not None:
            joined = folder.layer("concat", f"{name}.concat", skip, joined)
        return folder.conv(folder.norm(joined, self.norm), self.merge.conv, f"{name}.merge.conv")

    def _fold_merge_split(self, folder: Folder, skip: Value | None, deep: Value, name: str) -> Value:
        """Fold it with a convolution for each part, ``conv(cat(s, u)) = conv_s(s) + conv_u(u)``.

        That of the upsampled part is then the operator that does less work.
        """
        conv, mode, name = self.merge.conv, self.upsample.mode, f"{name}.merge"
        assert isinstance(conv, nn.Conv2d)
        of_skip, of_deep = slice(self.skip_channels), slice(self.skip_channels, None)
        deep = folder.norm(deep, self.norm, channels=of_deep, upsampled=mode)
        convolved = folder.upsample_conv(deep, conv, f"{name}.deep", mode=mode, channels=of_deep)
        if skip is None:
            return convolved
        skip = folder.norm(skip, self.norm, channels=of_skip)
        beside = folder.conv(skip, conv, f"{name}.skip", channels=of_skip, bias=False)
        return folder.layer("add", f"{name}.add", convolved, beside)


class Skip(Network):
    """Encoder-decoder with skip branches: ``(N, in_channels, H, W) -> (N, out_channels, H, W)``, usually in (0, 1).

    Every argument that describes a scale is one value for all scales or a sequence with one value a scale, the
    full-resolution scale first.  The parameters are named ``scale.<part>.<conv|norm>.<weight|bias>``, and those of
    deeper scales ``scale.inner.<part>...``, ``scale.inner.inner.<part>...``; the last convolution is ``head``.
    ``<part>`` is ``skip`` (1x1), ``reduce`` (3x3, stride 2), ``deepen`` (3x3), ``norm`` (after the concatenation, skip
    channels first), ``merge`` (3x3) or ``mix`` (1x1).  Convolution weights are ``(out, in, kernel, kernel)``.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the network input and of the image.
    down, up : int or sequence of int
        Channels of the encoder and of the decoder at each scale; a sequence gives the number of scales.
    skip : int or sequence of int
        Channels of the skip branch; 0 leaves the branch out.
    scales : int, optional
        Number of scales; taken from the sequences where there is one, otherwise 5.
    kernel_down, kernel_up, kernel_skip : int or sequence of int
        Odd kernel sizes.
    conv1x1 : bool
        Whether a 1x1 convolution follows the 3x3 one in the decoder.
    upsampling : {"nearest", "bilinear"} or sequence
    downsampling : {"stride", "average", "max", "lanczos2", "lanczos3"} or sequence
        Stride 2 in the convolution, or after it pooling or a Lanczos filter of so many lobes.
    padding_mode : {"reflect", "zeros", "replicate"}
    negative_slope : float
        Slope of the LeakyReLUs below zero.
    activation : {"leaky_relu", "elu", "swish"}
        What stands behind the batch norms; the fused operators know the LeakyReLU alone.
    sigmoid : bool
        Whether a sigmoid keeps the image within (0, 1); without it the image may have any values.
    corrects : bool
        Whether the network draws a correction of the image in the first ``out_channels`` channels of z, by at most half
        the range: ``z + f(z) - 1/2``.  Batch norm takes the level of a crop away, and this brings it back.

    Notes
    -----
    H and W are multiples of ``2**scales``, and at least twice that, since batch norm needs two pixels at the deepest
    scale, and so does the reflection of one; a larger kernel reflects more pixels, and needs more.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.
    """

    def __init__(
        self,
        in_channels: int = 32,
        out_channels: int = 3,
        *,
        down: int | Sequence[int] = 128,
        up: int | Sequence[int] = 128,
        skip: int | Sequence[int] = 4,
        scales: int | None = None,
        kernel_down: int | Sequence[int] = 3,
        kernel_up: int | Sequence[int] = 3,
        kernel_skip: int | Sequence[int] = 1,
        conv1x1: bool = True,
        upsampling: str | Sequence[str] = "bilinear",
        downsampling: str | Sequence[str] = "stride",
        padding_mode: PaddingMode = "reflect",
        negative_slope: float = 0.2,
        activation: str = "leaky_relu",
        sigmoid: bool = True,
        corrects: bool = False,
    ) -> None:
        super().__init__()
        if corrects and in_channels < out_channels:
            raise ValueError(f"z must hold the {out_channels} channels that are corrected, got {in_channels}")
        if corrects and not sigmoid:
            raise ValueError("corrects needs the sigmoid, which bounds the correction; leave sigmoid=False out")
        self.corrects, self.sigmoid = corrects, sigmoid
        per_scale = (down, up, skip, kernel_down, kernel_up, kernel_skip, upsampling, downsampling)
        depth = _depth(scales, per_scale)
        downs, ups, skips = (_each(value, depth) for value in (down, up, skip))
        kernels_down, kernels_up, kernels_skip = (_each(v, depth) for v in (kernel_down, kernel_up, kernel_skip))
        upsamplings, downsamplings = _each(upsampling, depth), _each(downsampling, depth)
        counts = {"down": downs, "up": ups, "skip": skips}
        counts |= {"kernel_down": kernels_down, "kernel_up": kernels_up, "kernel_skip": kernels_skip}
        for name, values in counts.items():
            for value in values:
                integer(name, value, least=0 if name == "skip" else 1)
        if any(kernel % 2 == 0 for kernel in (*kernels_down, *kernels_up, *kernels_skip)):
            raise ValueError("kernel sizes must be odd, so that a padded convolution keeps the size")
        for name, values, allowed in (
            ("upsampling", upsamplings, UPSAMPLING),
            ("downsampling", downsamplings, DOWNSAMPLING),
        ):
            if wrong := set(values) - set(allowed):
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {wrong.pop()!r}")

        scale: Scale | None = None
        for i in reversed(range(depth)):
            scale = Scale(
                in_channels if i == 0 else downs[i - 1],
                down=downs[i],
                up=ups[i],
                skip=skips[i],
                inner=scale,
                inner_channels=downs[i] if scale is None else ups[i + 1],
                kernel_down=kernels_down[i],
                kernel_up=kernels_up[i],
                kernel_skip=kernels_skip[i],
                conv1x1=conv1x1,
                upsampling=upsamplings[i],
                downsampling=downsamplings[i],
                padding_mode=padding_mode,
                negative_slope=negative_slope,
                activation=activation,
            )
        assert scale is not None
        self.scale = scale
        self.head = nn.Conv2d(ups[0], out_channels, 1)
        self.multiple = 2**depth
        self._multiples = 2  # of `multiple`, at least
        if padding_mode == "reflect":  # fewer pixels than there are
            for i in range(depth):
                inside, outside = kernels_down[i], max(kernels_down[i], kernels_up[i], kernels_skip[i])
                for kernel, side in ((inside, 2 ** (depth - 1 - i)), (outside, 2 ** (depth - i))):
                    self._multiples = max(self._multiples, -(-(kernel // 2 + 1) // side))
        # Of the fused form: convolutions without their bias, which a batch norm takes away again; all layers in a call.
        self._without_bias: list[nn.Conv2d | nn.ConvTranspose2d] = []
        self._at_once: AtOnce | None = None

    def forward(self, z: Tensor) -> Tensor:
        """Draw the image from ``z``, ``(N, in_channels, H, W)``."""
        size, least = tuple(z.shape[-2:]), self._multiples * self.multiple
        if size != self.input_size(*size):
            raise ValueError(f"sides of z must be multiples of {self.multiple} and at least {least}, got {size}")
        drawn = self._draw(z) if self._at_once is None else self._at_once(z, self._draw)
        drawn = torch.sigmoid(full(drawn)) if self.sigmoid else full(drawn)
        return full(z[:, : drawn.shape[1]]) - 0.5 + drawn if self.corrects else drawn

    def _draw(self, z: Tensor) -> Tensor:
        """Draw what the head writes."""
        drawn = self.scale(z)
        if isinstance(drawn, Convolved):
            from dip_fast import ops  # here, since it loads or builds the extension

            drawn, _ = ops.norm_conv2d(
                operand(drawn, drawn.slope), self.head.weight, self.head.bias, slope=drawn.slope, eps=drawn.norm.eps,
                dtype=plain_dtype(z),
            )  # fmt: skip
        else:
            drawn = self.head(drawn)
        return without_gradient(drawn, [conv.bias for conv in self._without_bias if conv.bias is not None])

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture of ``height x width``."""
        return cover(height, self.multiple, self._multiples), cover(width, self.multiple, self._multiples)

    def fold(self, folder: Folder, z: Value) -> Value:
        """Fold the network, see `Network.fold`."""
        drawn = folder.conv(self.scale.fold(folder, z, "scale"), self.head, "head")
        if self.sigmoid:
            drawn = folder.layer("sigmoid", "sigmoid", drawn)
        if not self.corrects:
            return drawn
        # The image among the channels of z, less 1/2, as a convolution that picks it.
        conv = nn.Conv2d(z.tensor.shape[1], self.head.out_channels, 1, device="meta")  # draws no random numbers
        conv.weight = nn.Parameter(torch.eye(*conv.weight.shape[:2])[..., None, None])
        conv.bias = nn.Parameter(torch.full((self.head.out_channels,), -0.5))
        return folder.layer("add", "corrected", folder.conv(z, conv, "image"), drawn)

    def lessened(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Scale the last convolution, see `Network.lessened`: the sigmoid is straight around 0."""
        return {name: share * value if name.startswith("head.") else value for name, value in weights.items()}

    def use(self, engine: str) -> Self:
        """Choose the engine, see `Network.use`."""
        super().use(engine)
        self._without_bias = [block.conv for block in self.modules() if isinstance(block, Block) and block.fused]
        self._without_bias += [scale.merge.conv for scale in self.modules() if isinstance(scale, Scale) and scale.fused]
        self._at_once = AtOnce(self) if self.is_wholly_fused() else None
        return self

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of the original program's network, in order.

        Parameters
        ----------
        state : mapping of str to Tensor
            ``state_dict()`` of the original network with the same options; running statistics are ignored, since
            neither network uses them.

        Raises
        ------
        ValueError
            If the number of tensors or one of their shapes differs.
        """
        theirs = {key: value for key, value in state.items() if key.rsplit(".", 1)[-1] in ("weight", "bias")}
        ours = self.state_dict()
        if len(theirs) != len(ours):
            raise ValueError(f"state must hold {len(ours)} weights and biases, got {len(theirs)}")
        for (name, mine), (key, value) in zip(ours.items(), theirs.items(), strict=True):
            if mine.shape != value.shape:
                raise ValueError(f"{name} must be {tuple(mine.shape)}, got {tuple(value.shape)} from {key}")
        self.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))


def _depth(scales: int | None, arguments: Iterable[Any]) -> int:
    """Return the number of scales, on which all arguments that are sequences agree."""
    lengths = {len(value) for value in arguments if isinstance(value, Sequence) and not isinstance(value, str)}
    if scales is not None:
        lengths.add(scales)
    if len(lengths) > 1:
        raise ValueError(f"the arguments must describe one number of scales, got {sorted(lengths)}")
    depth = lengths.pop() if lengths else 5
    if depth < 1:
        raise ValueError(f"scales must be at least 1, got {depth}")
    return depth


def _each(value: Any, depth: int) -> Sequence[Any]:
    """Return the values of an argument, one a scale."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * depth
