"""The two kinds of block. A block's forward is the diagram of its residual stream."""

from __future__ import annotations

import torch
from torch import nn

from hooked_asr.components.attention import Attention, CrossAttention
from hooked_asr.components.kv_cache import LayerCache
from hooked_asr.components.mlp import MLP
from hooked_asr.components.norm import LayerNorm
from hooked_asr.config import StackConfig
from hooked_asr.hooks import HookPoint
from hooked_asr.shapes import Audio, Resid


class Block(nn.Module):
    """Self-attention and an MLP: the encoder's block."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.ln1 = LayerNorm(stack.d_model, stack.norm_eps)
        self.attn = Attention(stack)
        self.ln2 = LayerNorm(stack.d_model, stack.norm_eps)
        self.mlp = MLP(stack)
        self.hook_resid_pre = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(self, resid_pre: Resid) -> Resid:
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.hook_attn_out(self.attn(self.ln1(resid_pre)))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_out = self.hook_mlp_out(self.mlp(self.ln2(resid_mid)))
        resid_post: Resid = self.hook_resid_post(within_float16(resid_mid + mlp_out))
        return resid_post


class CrossBlock(nn.Module):
    """Self-attention, attention to the audio and an MLP: the decoder's block."""

    def __init__(self, stack: StackConfig, d_enc: int) -> None:
        super().__init__()
        self.ln1 = LayerNorm(stack.d_model, stack.norm_eps)
        self.attn = Attention(stack, causal=True)
        self.ln2 = LayerNorm(stack.d_model, stack.norm_eps)
        self.cross_attn = CrossAttention(stack, d_source=d_enc)
        self.ln3 = LayerNorm(stack.d_model, stack.norm_eps)
        self.mlp = MLP(stack)
        self.hook_resid_pre = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_cross_attn_out = HookPoint()
        self.hook_resid_mid_cross = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(self, resid_pre: Resid, audio: Audio, past: LayerCache | None = None) -> Resid:
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.hook_attn_out(self.attn(self.ln1(resid_pre), past))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        cross_out = self.hook_cross_attn_out(self.cross_attn(self.ln2(resid_mid), audio, past))
        resid_mid_cross = self.hook_resid_mid_cross(resid_mid + cross_out)
        mlp_out = self.hook_mlp_out(self.mlp(self.ln3(resid_mid_cross)))
        resid_post: Resid = self.hook_resid_post(resid_mid_cross + mlp_out)
        return resid_post


def within_float16(resid: Resid) -> Resid:
    """The reference keeps its encoder's float16 streams clear of infinity, so this must too."""
    if resid.dtype != torch.float16:
        return resid
    limit = torch.finfo(torch.float16).max - 1000
    return resid.clamp(-limit, limit)
