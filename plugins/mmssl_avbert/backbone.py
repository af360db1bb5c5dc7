"""AVBert: CNNs for short clips, Transformers over long sequences of them (Lee et al., ICLR 2021).

A video and its sound are cut into T clips, of a second each in the paper::

    video [B, 3, T·Tf, H, W] --visual CNN, Linear, LayerNorm--> x_v [B, T, D]
    audio [B, 1, F, ~T·Ta] ---audio CNN, Linear, LayerNorm----> x_a [B, T, D]

    y_v = g_V(LayerNorm([BOS_v; x_v] + p_v))    y_a = g_A(LayerNorm([BOS_a; x_a] + p_a))
    z = h_AV([LayerNorm(y_v + p + m_v); LayerNorm(y_a + p + m_a)])

The outputs at BOS summarise their sequence: y_v[0], y_a[0], z[0] and z[T + 1]. Fusion ``early``
has h_AV alone, right behind the CNNs, ``late`` g_V and g_A alone; either is twice as deep.

Parts of it stand alone (`AVBert.subnetworks`): a CNN, for clips of any length; a CNN with the
Transformer of its modality; or all, with another choice of what stands for a sequence.

A spectrogram of the whole sequence has some frames more or fewer than T·Ta: windows reach beyond
its end, and hops seldom divide a second. Clips of Ta frames begin at equal distances in it.

Further modalities, or others, join as these do: each by a CNN and a Transformer of its own, and by
its sequence among those that h_AV sees together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl import Backbone, Features
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders
from mmssl_avbert.low_rank import rotations
from mmssl_avbert.orthogonal import Method
from mmssl_avbert.streams import (
    MODALITIES,
    MULTIMODAL,
    TIME_AXIS,
    Places,
    Stream,
    check_further,
)
from mmssl_avbert.transformer import Sharing, transformers

Fusion = Literal["early", "mid", "late"]
Pooled = Literal["cnn", "unimodal", "multimodal"]
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(kw_only=True)
class SequenceFeatures(Features):
    """Features of one modality's sequences.

    Attributes:
        embeddings: ``[B, T, D]``, what the CNN made of each clip, for `AVBert.contextualise`.
    """

    embeddings: Tensor


@dataclass
class Contextualised:
    """What Transformers make of embeddings: by modality, the summary and T clips.

    Attributes:
        unimodal: ``[B, 1 + T, D]``, outputs of g_V, g_A and others; empty with early fusion.
        multimodal: ``[B, 1 + T, D]``, outputs of h_AV; empty with late fusion.
    """

    unimodal: dict[str, Tensor]
    multimodal: dict[str, Tensor]


class AVBert(Backbone):
    """AVBert: two CNNs, and Transformers that share parameters; the recipe's key is video+audio.

    With CNNs of further modalities the key names them, too, such as video+audio+imu: each has a
    Transformer of its own, and the multimodal one sees all sequences. Any combination of
    modalities may be absent from a sample.

    With the defaults the Transformers have 3 843 840 parameters, where 127 581 696 would not be
    shared; rotations are trained at a tenth of the learning rate by a group of the pattern
    ``*.skew``.

    Args:
        video_cnn: encodes ``[n, 3, video_frames, H, W]``, such as ``slowfast_r50``; null where the
            key has no video.
        audio_cnn: encodes ``[n, 1, F, audio_frames]``, such as ``resnet50_half_audio``; null where
            the key has no audio.
        video_frames: frames of a clip, Tf; 32 in the paper's table 3, 16 in its text.
        audio_frames: frames of a clip's log-mel spectrogram, Ta.
        length: clips of the longest sequence; shorter ones, with T below, are taken as well.
        further: CNNs of further modalities, by their names in the key.
        further_frames: frames of a clip of each of them.
        further_axes: the dimension along which frames of a further modality follow each other: 1
            for the first of its clips' shape; the last one where it is left out.
        dim: D.
        layers: L; fusion early and late have Transformers of 2L layers.
        heads: of the attention; they divide D.
        hidden: E, dimensions between the two feed-forward maps.
        fusion: where the modalities meet: early, right behind the CNNs; mid, behind Transformers
            of their own; late, not at all.
        sharing: what of the Transformers' parameters is shared. none: nothing; layers: by the
            layers of a Transformer; all: by all layers of all Transformers; part: of weights
            W = UΣVᵀ the projection U by all, rotation Σ and V by the layers of a Transformer;
            part_attention: the same in attention alone.
        rank: of those weights; not used where none is decomposed.
        rotation: how Σ is computed: pade, exponential by a Padé approximant; matrix_exp,
            torch's; cayley, Cayley's map.
        dropout: probability, of embeddings, attention weights and the attention's output.
        modality_embeddings: tell the multimodal Transformer which tokens are seen and which are
            heard, or else sensed (without: 67.1 where with them it is 67.5 %, B.5).
        pooled: what stands for a sequence: the summary by the multimodal or the unimodal
            Transformer, or the mean of the CNN's embeddings; by default of the last Transformer
            that there is.
        init_std: standard deviation of what linear maps and learned vectors (BOS, mask, time,
            modality) begin with.
    """

    # Of an instance: those that its CNNs serve.
    modalities: frozenset[str] | Literal["any"] = "any"
    joint = True

    def __init__(
        self,
        *,
        video_cnn: Backbone | None = None,
        audio_cnn: Backbone | None = None,
        video_frames: Positive = 32,
        audio_frames: Positive = 220,
        length: Positive = 30,
        further: dict[str, Backbone] | None = None,
        further_frames: dict[str, Positive] | None = None,
        further_axes: dict[str, Positive] | None = None,
        dim: Positive = 768,
        layers: Positive = 6,
        heads: Positive = 12,
        hidden: Positive = 3072,
        fusion: Fusion = "mid",
        sharing: Sharing = "part",
        rank: Positive = 128,
        rotation: Method = "pade",
        dropout: Probability = 0.1,
        modality_embeddings: bool = True,
        pooled: Pooled | None = None,
        init_std: Deviation = 0.01,
    ) -> None:
        super().__init__()
        own = {"video": video_cnn, "audio": audio_cnn}
        cnns = {name: cnn for name, cnn in own.items() if cnn is not None}
        for name, cnn in cnns.items():
            if cnn.joint or (cnn.modalities != "any" and name not in cnn.modalities):
                raise UserError(f"{name}_cnn: {type(cnn).__name__} is no network for {name} alone")
        kinds: list[frozenset[str] | Literal["any"]] = [frozenset({name}) for name in cnns]
        frames = {"video": video_frames, "audio": audio_frames}
        if further:
            kinds += [cnn.modalities for cnn in further.values()]
        check_further(further or {}, further_frames or {}, further_axes or {})
        cnns, frames = cnns | (further or {}), frames | (further_frames or {})
        axes = TIME_AXIS | (further_axes or {})
        if len(cnns) < 2:
            raise UserError(
                f"has the CNN of {' '.join(cnns) or 'no modality'} alone: it takes two modalities "
                "or more (video_cnn, audio_cnn, further)"
            )
        #: The modalities, in the order of their parameters.
        self.names = tuple(cnns)
        self.modalities = "any" if "any" in kinds else frozenset().union(*kinds)
        if dim % heads:
            raise UserError(f"heads: {heads} do not divide {dim} dimensions (dim)")
        unimodal = () if fusion == "early" else self.names
        multimodal = () if fusion == "late" else (MULTIMODAL,)
        if (pooled, fusion) in (("unimodal", "early"), ("multimodal", "late")):
            raise UserError(f"pooled: fusion {fusion} has no {pooled} Transformer: leave it out")
        self.dim = dim
        self.pooled = pooled or ("multimodal" if multimodal else "unimodal")
        # Keeps absent clips away from the CNNs' batch norms, of all ranks.
        self.cnns = Encoders(cnns, list(self.names))
        self.streams = nn.ModuleDict(
            {
                name: Stream(name, cnn.dim, dim, frames[name], length, init_std, axes.get(name))
                for name, cnn in cnns.items()
            }
        )
        self.places = nn.ModuleDict(
            {name: Places(length, dim, dropout, init_std) for name in (*unimodal, *multimodal)}
        )
        told = self.names if multimodal and modality_embeddings else ()
        self.modality = nn.ParameterDict(
            {name: torch.empty(dim).normal_(0, init_std) for name in told}
        )
        self.transformers = transformers(
            dict.fromkeys((*unimodal, *multimodal), layers if fusion == "mid" else 2 * layers),
            dim,
            heads,
            hidden,
            sharing=sharing,
            rank=rank,
            method=rotation,
            dropout=dropout,
        )
        for part in (*self.streams.modules(), *self.transformers.modules()):
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, 0, init_std)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        """Encode sequences; what is absent has zeros.

        Args:
            clips: ``video [B, 3, T·Tf, H, W]`` and ``audio [B, 1, F, n]``, n/Ta rounding to T; of
                further modalities as many frames as round to T clips of theirs.
            present: ``[B]`` bool by modality, on the CPU.

        Returns:
            By modality `SequenceFeatures`: ``pooled [B, D]``, ``tokens [B, T, D]`` of the same
            depth, and ``embeddings [B, T, D]``.

        Raises:
            ValueError: sequences are no whole clips, too long, or not as many clips of all.
        """
        return self.features(clips, present, self.pooled)

    def features(
        self, clips: Mapping[str, Tensor], present: Mapping[str, Tensor], pooled: Pooled
    ) -> dict[str, Features]:
        """As `forward`, with a choice of what stands for a sequence."""
        embeddings = self.embed(clips, present)
        if pooled == "cnn":
            return {
                name: SequenceFeatures(pooled=x.mean(1), tokens=x, embeddings=x)
                for name, x in embeddings.items()
            }
        outputs = self.contextualise(embeddings, present)
        chosen = outputs.unimodal if pooled == "unimodal" else outputs.multimodal
        return {
            name: SequenceFeatures(pooled=y[:, 0], tokens=y[:, 1:], embeddings=embeddings[name])
            for name, y in chosen.items()
        }

    def subnetworks(self) -> dict[str, Backbone]:
        """Parts that stand alone, as far as this fusion has them.

        ``video_cnn``, ``audio_cnn`` and so on: a CNN, of clips of any length.
        ``video_transformer`` and so on: a CNN and the Transformer of its modality, of sequences.
        ``cnn``, ``unimodal`` and ``multimodal``: all modalities, with that choice of `pooled`.
        """
        found: dict[str, Backbone] = {}
        for name in self.names:
            cnn = self.cnns.backbones[name]
            assert isinstance(cnn, Backbone)
            found[f"{name}_cnn"] = cnn
            if name in self.transformers:
                found[f"{name}_transformer"] = OneModality(self, name)
        kinds: list[Pooled] = ["cnn"]
        kinds += ["unimodal"] if self._unimodal else []
        kinds += ["multimodal"] if MULTIMODAL in self.transformers else []
        return found | {kind: Pooling(self, kind) for kind in kinds}

    def embed(
        self, clips: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The CNNs' embeddings x of each clip, zeros where a modality is absent.

        Args:
            clips: as in `forward`.
            present: ``[B]`` bool by modality, on the CPU.

        Returns:
            ``[B, T, D]`` by modality.
        """
        if set(clips) != set(self.names):
            takes = _listed(self.names)
            raise ValueError(f"takes the modalities {takes}, not {_listed(list(clips))}")
        lengths = {name: self.stream(name).clips(clips[name]) for name in self.names}
        length = lengths[self.names[0]]
        if any(other != length for other in lengths.values()):
            first, *others = (f"of {name} there are {n} clips" for name, n in lengths.items())
            rest = (other.replace(" there are", "").removesuffix(" clips") for other in others)
            raise ValueError(", ".join([first, *rest]))
        features: dict[str, Features] = self.cnns(
            {name: self.stream(name).cut(clips[name], length) for name in self.names},
            {name: present[name].repeat_interleave(length) for name in self.names},
        )
        return {
            name: _kept(
                self.stream(name).glue(found.pooled).unflatten(0, (-1, length)),
                present[name].to(found.pooled.device),
            )
            for name, found in features.items()
        }

    def contextualise(
        self,
        embeddings: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        masked: Tensor | None = None,
    ) -> Contextualised:
        """The Transformers' outputs, zeros where a modality is absent.

        Args:
            embeddings: ``[B, T, D]`` by modality, as `embed` returns them.
            present: ``[B]`` bool by modality; nothing attends to what is absent.
            masked: ``[B, T]`` bool, clips whose embedding is replaced by the modality's mask
                vector, in all modalities; none by default.
        """
        turned = rotations(self.transformers)
        keep = {name: present[name].to(x.device) for name, x in embeddings.items()}
        sequences = {name: self.stream(name).begun(x, masked) for name, x in embeddings.items()}
        unimodal = {}
        if self._unimodal:
            for name, x in sequences.items():
                attended = keep[name][:, None].expand(x.shape[:2])
                y = self.transformers[name](self.places[name](x), attended, turned)
                unimodal[name] = _kept(y, keep[name])
        if MULTIMODAL not in self.transformers:
            return Contextualised(unimodal, {})
        names = self.names
        below = unimodal or sequences
        told = [below[n] + self.modality[n] if self.modality else below[n] for n in names]
        joined = torch.cat([self.places[MULTIMODAL](x) for x in told], 1)
        attended = torch.cat([keep[n][:, None].expand(below[n].shape[:2]) for n in names], 1)
        z = self.transformers[MULTIMODAL](joined, attended, turned)
        parts = z.split([below[n].shape[1] for n in names], 1)
        return Contextualised(
            unimodal, {n: _kept(part, keep[n]) for n, part in zip(names, parts, strict=True)}
        )

    @property
    def _unimodal(self) -> bool:
        """Has each modality a Transformer of its own?"""
        return self.names[0] in self.transformers

    def stream(self, name: str) -> Stream:
        """What is done to a modality before any Transformer."""
        stream = self.streams[name]
        assert isinstance(stream, Stream)
        return stream


class OneModality(Backbone):
    """A CNN and the Transformer behind it, which know nothing of the other modalities.

    Args:
        whole: the network that it is a part of.
        modality: one of its names.
    """

    def __init__(self, whole: AVBert, modality: str) -> None:
        super().__init__()
        self.dim = whole.dim
        cnn = whole.cnns.backbones[modality]
        assert isinstance(cnn, Backbone)
        self.modalities = frozenset({modality}) if modality in MODALITIES else cnn.modalities
        self.cnn = cnn
        self.stream = whole.stream(modality)
        self.place = whole.places[modality]
        self.transformer = whole.transformers[modality]

    def forward(self, clip: Tensor) -> SequenceFeatures:
        """Encode sequences, as they are cut in `AVBert.forward`.

        Returns:
            ``pooled [B, D]``, the output at BOS, ``tokens [B, T, D]`` and ``embeddings [B, T, D]``.
        """
        length = self.stream.clips(clip)
        cnn: Features = self.cnn(self.stream.cut(clip, length))
        x = self.stream.glue(cnn.pooled).unflatten(0, (-1, length))
        placed = self.place(self.stream.begun(x))
        everything = torch.ones(placed.shape[:2], dtype=torch.bool, device=placed.device)
        y = self.transformer(placed, everything, rotations(self.transformer))
        return SequenceFeatures(pooled=y[:, 0], tokens=y[:, 1:], embeddings=x)


class Pooling(Backbone):
    """The whole network, with another choice of what stands for a sequence.

    Args:
        whole: the network.
        pooled: the choice.
    """

    joint = True

    def __init__(self, whole: AVBert, pooled: Pooled) -> None:
        super().__init__()
        self.modalities = whole.modalities
        self.dim = whole.dim
        self.whole = whole
        self.pooled: Pooled = pooled

    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        """As `AVBert.forward`."""
        return self.whole.features(clips, present, self.pooled)


def _kept(x: Tensor, rows: Tensor) -> Tensor:
    """``x [B, N, D]`` with zeros in other rows, which pass no gradient on."""
    return torch.where(rows[:, None, None], x, x.new_zeros(()))


def _listed(names: Sequence[str]) -> str:
    """``video, audio and imu``."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])
