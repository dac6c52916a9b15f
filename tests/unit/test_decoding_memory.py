"""What a decoding holds on to while it goes on."""

import gc

import tiny
import torch


def held():
    """Bytes of all tensors alive, memory that several share counted once."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def growth(n_steps, **options):
    """Bytes that a decoding holds in its last step more than five steps before."""
    model = tiny.hooked("deep_decoder")
    model.generation_config.suppress_tokens = list(range(tiny.END, tiny.N_VOCAB))
    mel, _ = tiny.inputs(model, batch=2)
    seen = []
    watch = ("unembed.hook_out", lambda x, hook: seen.append(held()))
    model.generate(mel, max_new_tokens=n_steps, fwd_hooks=[watch], **options)
    assert len(seen) == n_steps
    return seen[-1] - seen[-6]


def test_memory_does_not_grow_with_the_steps():
    """A token and its log-probability for each row is all that a step adds."""
    assert 0 < growth(15) <= 5 * 2 * (8 + 8)


def test_memory_grows_by_what_is_to_be_kept():
    per_step = 2 * 32 * 4  # rows, width, bytes of a float
    kept = growth(15, names_filter="decoder.*.hook_resid_post")
    assert 5 * 3 * per_step <= kept <= 5 * 3 * per_step + 5 * 2 * (8 + 8)
