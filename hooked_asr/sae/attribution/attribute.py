"""Which features of a sparse autoencoder carry a token, or an error: estimated from gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.interventions import replace
from hooked_asr.names import HookSpec
from hooked_asr.patching.engine import run_rows
from hooked_asr.patching.engine.measure import AnyMetric, metric_name
from hooked_asr.patching.gradients import GradientRun
from hooked_asr.patching.operations import Inputs, Run, as_inputs, check_operation
from hooked_asr.sae.attribution.result import FeatureAttribution
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.edit_actions import Dictionary
from hooked_asr.sae.errors import SAEError

_METHODS = ("plain", "integrated")

Flat = Float[Tensor, "pos d"]
Active = Float[Tensor, "pos feature"]


def attribute_features(
    sae: SparseAutoencoder,
    model: Any,
    run: Run,
    metric: AnyMetric,
    *,
    method: str = "plain",
    against: Run | None = None,
    steps: int = 10,
    top_exact: int = 20,
    memory: int | str | None = None,
    progress: bool = True,
) -> FeatureAttribution:
    """Estimate what taking out each feature at each position would change, for all at once.

        found = attribute_features(sae, model, (mel, tokens), log_prob(token, pos=7))
        found.by_feature().head(), found.agreement.pearson

    - `run`: one clip, as `(mel, tokens)` or a forward's inputs by name.
    - `metric`: must be differentiable, and not flat in this run (see `patching.attribution`).
    - `method`: "plain", the change of a feature times the metric's gradient along it; or
      "integrated", the gradient's mean over `steps` points on the straight way on which all of the
      site goes at once, so that the effects and the error's add up to what the metric truly does.
    - `against`: a run with as many tokens: features change to what they are there. Without one they
      are taken out.
    - `top_exact`: so many features, of the greatest effects over all positions, are changed one by
      one everywhere, to tell how right the estimates are. `memory`: for these, as `run_rows`.

    What the autoencoder leaves out of the activation is a node of its own: it goes along, and its
    effects are kept beside the features'.

    Raises `SAEError` for an unknown method, several clips, or an autoencoder that does not fit;
    `AttributionError` for a metric that cannot be differentiated, `SweepError` where the runs do
    not fit together.

    Sources: "Sparse Feature Circuits" (2024), section 3, equations 3 and 4; "Axiomatic Attribution
    for Deep Networks" (2017).
    """
    inputs = as_inputs(run)
    others = None if against is None else as_inputs(against)
    _check(inputs, method, steps, top_exact)
    if others is not None:
        check_operation("replace", 1.0, inputs, others)
    nodes = _Nodes.of(sae, model, inputs, metric, others)
    gradient = nodes.gradient if method == "plain" else nodes.mean_gradient(steps)
    effects = nodes.effects(gradient)
    left_out = (nodes.error_change * gradient).sum(-1)
    top = _greatest(effects, top_exact)
    exact = run_rows(
        model,
        nodes.inputs,
        [[nodes.without(feature)] for feature in top],
        metric,
        memory=memory,
        progress=progress,
        desc="features one by one",
    )
    positions, features = nodes.there.nonzero(as_tuple=True)
    return FeatureAttribution(
        positions=positions.tolist(),
        features=features.tolist(),
        active=nodes.active[nodes.there].tolist(),
        target=nodes.target[nodes.there].tolist(),
        effects=effects[nodes.there].tolist(),
        errors=left_out.tolist(),
        exact=dict(zip(top, (exact.values - exact.clean).tolist(), strict=True)),
        clean=nodes.clean,
        metric=metric_name(metric),
        method=method,
        site=nodes.spec.name,
        clock=nodes.spec.clock,
        model=model.name,
        tokens=_token_texts(model, nodes),
    )


@dataclass(frozen=True, eq=False)
class _Nodes:
    """One site of one run: its features, what they are to become, and the gradient there.

    `x`, `to`: the activation, and what it is when all features and the error have changed.
    """

    sae: SparseAutoencoder
    model: Any
    inputs: Inputs
    metric: AnyMetric
    spec: HookSpec
    shape: torch.Size
    clean: float
    x: Flat
    to: Flat
    active: Active
    target: Active
    gradient: Flat

    @classmethod
    def of(
        cls,
        sae: SparseAutoencoder,
        model: Any,
        inputs: Inputs,
        metric: AnyMetric,
        others: Inputs | None,
    ) -> _Nodes:
        dictionary, spec = Dictionary(sae), sae.spec(model)
        if spec.clock == "pos":  # the encoder runs once
            with torch.no_grad():
                inputs = model.encoded(inputs)
        run = GradientRun(model, inputs, metric, [spec.name])
        whole, hook = run.activations[spec.name], run.hooks[spec.name]
        x = dictionary.flat(whole, hook)[0]
        target, to = None, None
        if others is not None:
            with torch.no_grad():
                _, cache = model.run_with_cache(**others, names_filter=spec.name)
            to = dictionary.flat(cache[spec.name], hook)[0]
            target = sae.encode(to)
        active = sae.encode(x)
        if target is None or to is None:
            target = torch.zeros_like(active)
            to = sae.decode(target)  # right behind the encoding, as one that normalises needs it
        gradient = dictionary.flat(run.gradients()[spec.name], hook)[0]
        return cls(
            sae, model, inputs, metric, spec, whole.shape, run.value,
            x, to, active, target, gradient,
        )  # fmt: skip

    @property
    def there(self) -> Tensor:
        """Where a feature is active, or is to be `[pos feature]`."""
        return (self.active != 0) | (self.target != 0)

    @property
    def error_change(self) -> Flat:
        """How far the activation moves beside what the features' change decodes to."""
        return (self.to - self.x) - self._moved(self.target)

    def effects(self, gradient: Flat) -> Active:
        """Each feature's change times the metric's gradient along it."""
        with torch.inference_mode(False), torch.enable_grad():
            self.sae.encode(self.x)  # an autoencoder that normalises decodes by what it saw last
            free = self.active.clone().requires_grad_()
            decoded = self.sae.sae.decode(free)
            (slopes,) = torch.autograd.grad((decoded * gradient).sum(), free)
        return slopes * (self.target - self.active)

    def mean_gradient(self, steps: int) -> Flat:
        """On the way from the activation to where it goes, by the midpoint rule."""
        total = torch.zeros_like(self.x)
        for step in range(steps):
            here = self._shaped(self.x + (step + 0.5) / steps * (self.to - self.x))
            hooks = [(self.spec.name, lambda x, hook, here=here: here.to(x))]
            run = GradientRun(self.model, self.inputs, self.metric, [self.spec.name], hooks)
            total += run.gradients()[self.spec.name].reshape(total.shape).to(total)
        return total / steps

    def without(self, feature: int) -> Any:
        """The intervention by which one feature changes at every position."""
        changed = self.active.clone()
        changed[:, feature] = self.target[:, feature]
        return replace(self.spec.name, self._shaped(self.x + self._moved(changed)))

    def _moved(self, features: Active) -> Flat:
        """How far the activation moves when its features become these."""
        self.sae.encode(self.x)
        after = self.sae.decode(features)
        self.sae.encode(self.x)
        return after - self.sae.decode(self.active)

    def _shaped(self, x: Flat) -> Tensor:
        return x.reshape(self.shape)


def _greatest(effects: Active, n: int) -> list[int]:
    """The features of the greatest effects over all positions, of those that have any."""
    sums = effects.sum(0)
    order = sums.abs().sort(descending=True, stable=True).indices[:n]
    return [feature for feature in order.tolist() if sums[feature] != 0]


def _token_texts(model: Any, nodes: _Nodes) -> list[str] | None:
    if nodes.spec.clock != "pos" or model.tokenizer is None:
        return None
    texts: list[str] = model.to_str_tokens(nodes.inputs["tokens"])
    # Where the audio stands among the tokens, a position may be no token of its own.
    return texts if len(texts) == len(nodes.x) else None


def _check(inputs: Inputs, method: str, steps: int, top_exact: int) -> None:
    if method not in _METHODS:
        raise SAEError(f"methods are {' and '.join(map(repr, _METHODS))}; got {method!r}")
    if steps < 1:
        raise SAEError(f"the way has one step or more; got steps={steps}")
    if top_exact < 0:
        raise SAEError(f"0 features or more are changed one by one; got top_exact={top_exact}")
    n_clips = len(inputs["tokens"])
    if n_clips != 1:
        raise SAEError(f"features are attributed in one clip; the run has {n_clips}")
