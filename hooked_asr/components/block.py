"""The two kinds of block. A block's forward is the diagram of its residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hooked_asr.components.attention import Attention, CrossAttention
from hooked_asr.components.kv_cache import LayerCache
from hooked_asr.components.mlp import mlp
from hooked_asr.components.norm import norm
from hooked_asr.config import StackConfig
from hooked_asr.hooks import HookPoint
from hooked_asr.shapes import Audio, Mask, Resid


class Block(nn.Module):
    """Self-attention and an MLP: every stack's block but Whisper's decoder's."""

    def __init__(self, stack: StackConfig, attn: Attention) -> None:
        super().__init__()
        self.ln1 = norm(stack)
        self.attn = attn
        self.ln2 = norm(stack)
        self.mlp = mlp(stack)
        self.hook_resid_pre = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(self, resid_pre: Resid, **positions: Any) -> Resid:
        """`positions`: what the attention has to know of them: `past`, `mask`, `rotation`."""
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.hook_attn_out(self.attn(self.ln1(resid_pre), **positions))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_out = self.hook_mlp_out(self.mlp(self.ln2(resid_mid)))
        resid_post: Resid = self.hook_resid_post(self._leaving(resid_mid + mlp_out))
        return resid_post

    def _leaving(self, resid: Resid) -> Resid:
        return resid


class EncoderBlock(Block):
    """A block of an encoder, whose float16 stream the reference keeps clear of infinity."""

    def _leaving(self, resid: Resid) -> Resid:
        if resid.dtype != torch.float16:
            return resid
        limit = torch.finfo(torch.float16).max - 1000
        return resid.clamp(-limit, limit)


class CrossBlock(nn.Module):
    """Self-attention, attention to the audio and an MLP: the block of Whisper's decoder."""

    def __init__(self, stack: StackConfig, d_enc: int) -> None:
        super().__init__()
        self.ln1 = norm(stack)
        self.attn = Attention(stack, causal=True)
        self.ln2 = norm(stack)
        self.cross_attn = CrossAttention(stack, d_source=d_enc)
        self.ln3 = norm(stack)
        self.mlp = mlp(stack)
        self.hook_resid_pre = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_cross_attn_out = HookPoint()
        self.hook_resid_mid_cross = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self,
        resid_pre: Resid,
        audio: Audio | None,
        past: LayerCache | None = None,
        mask: Mask | None = None,
    ) -> Resid:
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.hook_attn_out(self.attn(self.ln1(resid_pre), past, mask))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        cross_out = self.hook_cross_attn_out(self.cross_attn(self.ln2(resid_mid), audio, past))
        resid_mid_cross = self.hook_resid_mid_cross(resid_mid + cross_out)
        mlp_out = self.hook_mlp_out(self.mlp(self.ln3(resid_mid_cross)))
        resid_post: Resid = self.hook_resid_post(resid_mid_cross + mlp_out)
        return resid_post
