"""What Qwen2-Audio takes: made from words and sound, found again in the prompt, or refused."""

import numpy as np
import pytest
import soundfile
import tiny_qwen2 as tiny
import tiny_qwen2_checkpoint as checkpoint
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from hooked_asr import AudioError, HookedQwen2Audio, InputError, UnknownHookError, load_audio
from hooked_asr.errors import HookedASRError

AUDIO = checkpoint.AUDIO
PLACE = "<|audio_bos|><|AUDIO|><|audio_eos|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint.save_checkpoint(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def model(folder):
    return HookedQwen2Audio.from_pretrained(folder)


@pytest.fixture
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def clip(samples=9000, seed=0):
    """Noise; 9000 samples are 57 frames, and 14 positions of the decoder."""
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def user(*parts):
    """A conversation of one message, of texts and (for None) of clips."""
    content = [{"type": "audio"} if p is None else {"type": "text", "text": p} for p in parts]
    return [{"role": "user", "content": content}]


def theirs(processor, texts, clips=(), side="left"):
    """What the reference makes of finished prompts and all their clips, under our names."""
    processor.tokenizer.padding_side = side
    sound = {"audio": list(clips), "sampling_rate": 16000} if len(clips) else {}
    out = processor(text=texts, **sound, return_tensors="pt", padding=True)
    ours = {"tokens": out["input_ids"], "attention_mask": out["attention_mask"]}
    if len(clips):
        ours["mel"] = out["input_features"]
        ours["mel_mask"] = out["feature_attention_mask"]
    return ours


def chat(processor, *conversations):
    """Each conversation as a prompt, up to where the model begins to speak."""
    return [processor.apply_chat_template(c, add_generation_prompt=True) for c in conversations]


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].shape == tensor.shape, name
        assert torch.equal(ours[name].to(tensor.dtype), tensor), name


# From words and sound


def test_a_clip_and_a_question_are_the_references_prompt(model, processor):
    expected = theirs(processor, chat(processor, user(None, "What was said?")), [clip()])
    inputs = model.to_inputs(clip(), "What was said?")
    assert_same(inputs, expected)
    assert (inputs["tokens"] == AUDIO).sum() == 14
    assert model.tokenizer.decode(inputs["tokens"][0]).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Audio 1: <|audio_bos|><|AUDIO|><|AUDIO|>"
    )


def test_words_alone_are_a_prompt_too(model, processor):
    expected = theirs(processor, chat(processor, user("Hello")))
    inputs = model.to_inputs(prompt="Hello")
    assert inputs.keys() == {"tokens", "attention_mask"}
    assert_same(inputs, expected)


def test_several_clips_come_in_their_order(model, processor):
    clips = [clip(9000), clip(16000, 1), clip(6400, 2)]
    prompts = chat(processor, user(None, None, None, "Who is it?"))
    inputs = model.to_inputs(clips, "Who is it?")
    assert_same(inputs, theirs(processor, prompts, clips))
    assert "Audio 3: " in model.tokenizer.decode(inputs["tokens"][0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_the_references_batch(model, processor, side):
    clips = [clip(9000), clip(16000, 1), clip(6400, 2), clip(12000, 3)]
    prompts = ["What was said?", "Hello", "Are the two the same?", "Who?"]
    audio = [clips[0], None, [clips[1], clips[2]], [clips[3]]]
    expected = theirs(
        processor,
        chat(
            processor,
            user(None, prompts[0]),
            user(prompts[1]),
            user(None, None, prompts[2]),
            user(None, prompts[3]),
        ),
        clips,
        side,
    )
    assert_same(model.to_inputs(audio, prompts, padding_side=side), expected)


def test_padding_goes_to_the_left_unless_it_is_told_otherwise(model):
    mask = model.to_inputs(prompt=["Hello", "Are the two the same?"])["attention_mask"]
    assert mask[0].tolist() == sorted(mask[0].tolist())
    assert mask[0, 0] == 0
    assert mask[1].all()


def test_a_batch_of_words_alone_needs_no_audio(model, processor):
    expected = theirs(processor, chat(processor, user("Hello"), user("Who is there?")))
    assert_same(model.to_inputs(prompt=["Hello", "Who is there?"]), expected)
    assert_same(model.to_inputs([None, None], ["Hello", "Who is there?"]), expected)


def test_each_clip_of_a_batch_is_what_it_is_alone(model):
    clips = [clip(9000), clip(16000, 1)]
    inputs = model.to_inputs(clips, ["What?", "Who?"])
    for i, one in enumerate(clips):
        alone = model.to_inputs(one, "What?")
        assert torch.equal(inputs["mel"][i], alone["mel"][0])
        assert torch.equal(inputs["mel_mask"][i], alone["mel_mask"][0])


def test_a_conversation_keeps_its_turns(model, processor):
    conversation = [
        {"role": "system", "content": "You listen."},
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A bell."},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "audio"}]},
    ]
    clips = [clip(9000), clip(6400, 1)]
    expected = theirs(processor, chat(processor, conversation), clips)
    assert_same(model.to_inputs(clips, conversation), expected)


def test_a_batch_may_be_of_conversations(model, processor):
    conversations = [user(None, "What?"), user("Hello"), user("This", None, "and", None)]
    clips = [clip(9000), clip(6400, 1), clip(16000, 2)]
    expected = theirs(processor, chat(processor, *conversations), clips)
    audio = [clips[0], None, clips[1:]]
    assert_same(model.to_inputs(audio, conversations), expected)


def test_a_conversation_may_name_its_recordings(model, processor, tmp_path):
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for seed, path in enumerate(paths):
        soundfile.write(path, clip(9000 - 1000 * seed, seed), 16000)
    clips = [load_audio(path).numpy() for path in paths]
    expected = theirs(processor, chat(processor, user(None, "or", None)), clips)
    content = [
        {"type": "audio", "audio": str(paths[0])},
        {"type": "text", "text": "or"},
        {"type": "audio", "audio": str(paths[1])},
    ]
    named = [{"role": "user", "content": content}]
    assert_same(model.to_inputs(prompt=named), expected)


def test_a_conversation_that_was_given_is_left_as_it_was(model):
    conversation = user(None, "What?")
    model.to_inputs(clip(), conversation)
    assert conversation == user(None, "What?")


def test_a_clip_may_be_a_path_an_array_or_a_tensor(model, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, clip(), 16000, subtype="FLOAT")
    expected = model.to_inputs(clip(), "What?")
    for same in (path, str(path), torch.from_numpy(clip())):
        assert_same(model.to_inputs(same, "What?"), expected)
        assert_same(model.to_inputs([same], "What?"), expected)


def test_an_array_at_another_rate_is_resampled(model):
    samples = clip(4000)
    expected = model.to_inputs(load_audio(samples, 8000), "What?")
    inputs = model.to_inputs(samples, "What?", sample_rate=8000)
    assert_same(inputs, expected)
    assert inputs["mel_mask"].sum() == 50


@pytest.mark.parametrize("samples", [480, 481, 641, 6400, 6401, 15999, 16000])
def test_a_clip_has_as_many_places_as_in_the_reference(model, processor, samples):
    prompts = chat(processor, user(None, "What?"))
    expected = theirs(processor, prompts, [clip(samples)])
    inputs = model.to_inputs(clip(samples), "What?")
    assert_same(inputs, expected)
    frames = -(-samples // 160)
    assert inputs["mel_mask"].sum() == frames
    assert (inputs["tokens"] == AUDIO).sum() == tiny.n_pooled(frames)


def test_every_length_is_pooled_as_in_the_reference():
    encoder = tiny.hf_qwen2_audio().model.audio_tower
    for frames in range(1, tiny.N_FRAMES + 1):
        _, expected = encoder._get_feat_extract_output_lengths(frames)
        assert tiny.n_pooled(frames) == expected


def test_a_prompt_without_the_template_stands_as_it_is(model, processor):
    prompt = f"{PLACE}Generate the caption in English:"
    expected = theirs(processor, [prompt], [clip()])
    assert_same(model.to_inputs(clip(), prompt, chat=False), expected)
    words = theirs(processor, ["Once upon a time"])
    assert_same(model.to_inputs(prompt="Once upon a time", chat=False), words)


def test_a_batch_without_the_template_stands_as_it_is(model, processor):
    prompts = [f"{PLACE}Say it:", "Hello", f"{PLACE} or {PLACE}?"]
    clips = [clip(9000), clip(6400, 1), clip(16000, 2)]
    expected = theirs(processor, prompts, clips)
    audio = [clips[0], None, clips[1:]]
    assert_same(model.to_inputs(audio, prompts, chat=False), expected)


@pytest.mark.parametrize("said", ["A bell.", " a bell", "Ein Glöckchen"])
def test_what_the_model_is_made_to_say_stands_behind_the_prompt(model, processor, said):
    (prompt,) = chat(processor, user(None, "What?"))
    expected = theirs(processor, [prompt + said], [clip()])
    inputs = model.to_inputs(clip(), "What?", text=said)
    assert_same(inputs, expected)
    plain = model.to_inputs(clip(), "What?")["tokens"]
    assert torch.equal(inputs["tokens"][:, : plain.shape[1]], plain)
    assert model.tokenizer.decode(inputs["tokens"][0, plain.shape[1] :]) == said


@torch.no_grad()
def test_both_models_make_the_same_of_it(model, processor, folder):
    hf = Qwen2AudioForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
    clips = [clip(9000), clip(16000, 1)]
    prompts = chat(processor, user(None, "What was said?"), user(None, "Who?"))
    expected = hf(**tiny.hf_inputs(theirs(processor, prompts, clips))).logits
    assert torch.equal(model(**model.to_inputs(clips, ["What was said?", "Who?"])), expected)


def test_a_reply_is_the_references_in_tokens_and_in_text(model, processor, folder):
    hf = Qwen2AudioForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
    clips = [clip(9000), clip(16000, 1)]
    prompts = chat(processor, user(None, "What was said?"), user(None, "Who?"))
    given = theirs(processor, prompts, clips)
    # The published rules would sample; ours reads them, but decodes greedily unless told to.
    out = hf.generate(**tiny.hf_inputs(given), do_sample=False)
    rows = out[:, given["tokens"].shape[1] :].tolist()
    ends = {checkpoint.IM_END, checkpoint.END}
    stops = [next((i for i, t in enumerate(row) if t in ends), len(row)) for row in rows]
    expected = [row[:stop] for row, stop in zip(rows, stops, strict=True)]
    assert all(expected)
    replies = model.generate(**model.to_inputs(clips, ["What was said?", "Who?"]))
    assert [list(reply.tokens) for reply in replies] == expected
    texts = processor.batch_decode(expected, skip_special_tokens=True)
    assert [reply.text.strip() for reply in replies] == [text.strip() for text in texts]


# Where the audio stands


def test_positions_of_each_clip_are_found(model):
    """Also where two clips stand side by side, and rows begin with padding."""
    inputs = tiny.inputs([[40, 61], [], [100]], between=0, side="left", n_text=3, n_said=4)
    inputs["tokens"][inputs["tokens"] == tiny.AUDIO] = AUDIO
    spans = model.audio_positions(inputs)
    # The first row is 3 + 10 + 15 + 4 tokens long, as the last, 3 + 25 + 4.
    assert [(s.row, s.clip, s.positions) for s in spans] == [
        (0, 0, range(3, 13)),
        (0, 1, range(13, 28)),
        (2, 2, range(3, 28)),
    ]
    shorter = tiny.inputs([[61], [40]], side="left", n_text=3, n_said=4)
    shorter["tokens"][shorter["tokens"] == tiny.AUDIO] = AUDIO
    spans = model.audio_positions(shorter)
    assert [(s.row, s.clip, s.positions) for s in spans] == [
        (0, 0, range(3, 18)),
        (1, 1, range(8, 18)),
    ]


def test_positions_are_where_the_audio_tokens_are(model):
    inputs = model.to_inputs([clip(9000), clip(6400, 1)], ["What was said?", "Who?"])
    spans = model.audio_positions(inputs)
    assert len(spans) == 2
    for span in spans:
        where = (inputs["tokens"][span.row] == AUDIO).nonzero().flatten().tolist()
        assert list(span.positions) == where


def test_a_prompt_of_words_has_no_positions_of_audio(model):
    assert model.audio_positions(model.to_inputs(prompt="Hello")) == []


@pytest.fixture(scope="module")
def span(model):
    return model.audio_positions(model.to_inputs(clip(), "What was said?"))[0]


def test_each_position_hears_40_ms(span):
    assert len(span.positions) == 14
    for k, position in enumerate(span.positions):
        assert span.seconds(position) == pytest.approx((0.04 * k, 0.04 * (k + 1)))
        assert span.encoder(position) == range(2 * k, 2 * k + 2)
        assert span.frames(position) == range(4 * k, 4 * k + 4)


def test_each_moment_is_heard_at_the_position_that_says_so(span):
    for k, position in enumerate(span.positions):
        for moment in (0.04 * k + 0.001, 0.04 * k + 0.02, 0.04 * k + 0.039):
            assert span.at(moment) == position
            start, end = span.seconds(span.at(moment))
            assert start <= moment < end
    assert span.at(0.0) == span.positions[0]


@pytest.mark.parametrize("moment", [-0.01, 0.57, 1.5])
def test_a_moment_outside_the_clip_is_refused(span, moment):
    """The clip has 57 frames; the 14 positions hear the first 0.56 s."""
    with pytest.raises(HookedASRError, match=str(moment)):
        span.at(moment)


@torch.no_grad()
def test_a_position_hears_the_frames_it_names(model):
    """A change of the sound there, and only there, changes what enters the decoder most."""
    inputs = model.to_inputs(clip(), "What was said?")
    (span,) = model.audio_positions(inputs)
    position = span.positions[6]

    def pooled(mel):
        # Before any attention, an encoder position is its frames and their neighbours.
        stop = {"stop_at": "encoder.0", "mel_mask": inputs["mel_mask"]}
        return model(mel=mel, **stop).unflatten(1, (-1, 2)).sum(2)

    other = inputs["mel"].clone()
    frames = span.frames(position)
    other[:, :, frames.start : frames.stop] += 3.0
    changed = (pooled(other) - pooled(inputs["mel"])).abs().sum(-1)[0]
    assert int(changed.argmax()) == position - span.positions.start
    assert not changed[:5].any()
    assert not changed[8:].any()


# What cannot be taken says why


def refusal(call, *args, error=InputError, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value, HookedASRError)
    return str(caught.value)


@pytest.fixture(scope="module")
def bare():
    """A model that came without a tokenizer."""
    return tiny.hooked("gqa")


def given(frames=None, **options):
    return tiny.inputs([[61], [40]] if frames is None else frames, **options)


def test_words_need_a_tokenizer(bare):
    assert "tokenizer" in refusal(bare.to_inputs, prompt="Hello")


def test_a_clip_longer_than_the_window_is_refused(model):
    message = refusal(model.to_inputs, clip(19200), "What?", error=AudioError)
    assert "1.20 s" in message


def test_a_clip_too_short_to_be_heard_is_refused(model):
    """300 samples are two frames, of which no position can be made."""
    refusal(model.to_inputs, clip(300), "What?")


@pytest.mark.parametrize("n_clips", [1, 3])
def test_as_many_clips_as_places_must_be_given(model, n_clips):
    clips = [clip(9000, seed) for seed in range(n_clips)]
    message = refusal(model.to_inputs, clips, user(None, "or", None))
    assert str(n_clips) in message
    assert "2" in message
    message = refusal(model.to_inputs, clips, f"{PLACE} or {PLACE}?", chat=False)
    assert str(n_clips) in message
    assert "2" in message


def test_a_prompt_without_the_template_must_hold_a_place_for_the_clip(model):
    assert "<|AUDIO|>" in refusal(model.to_inputs, clip(), "What was said?", chat=False)


def test_a_place_without_a_clip_is_refused(model):
    refusal(model.to_inputs, prompt=f"{PLACE}What?", chat=False)
    refusal(model.to_inputs, prompt=user(None, "What?"))


def test_a_clip_for_each_prompt_must_be_given(model):
    message = refusal(model.to_inputs, [clip(), clip(), clip()], ["What?", "Who?"])
    assert "2" in message
    assert "3" in message


def test_clips_in_the_wrong_row_are_refused(model):
    conversations = [user(None, "What?"), user("Hello")]
    refusal(model.to_inputs, [None, clip()], conversations)


def test_an_unknown_side_of_padding_is_refused(model):
    assert "middle" in refusal(model.to_inputs, prompt="Hello", padding_side="middle")


def test_a_mel_without_audio_tokens_is_refused(bare):
    inputs = given() | tiny.inputs([[], []])
    assert inputs["mel"].shape[0] == 2
    refusal(bare, **inputs)


def test_audio_tokens_without_audio_are_refused(bare):
    inputs = given()
    refusal(bare, tokens=inputs["tokens"], attention_mask=inputs["attention_mask"])
    refusal(bare.generate, tokens=inputs["tokens"], attention_mask=inputs["attention_mask"])


def test_as_many_audio_tokens_as_pooled_frames_are_needed(bare):
    """15 + 10 positions, where the tokens have 25 + 10, or where one audio token is gone."""
    inputs = given()
    message = refusal(bare, **inputs | given([[100], [40]]) | {"mel_mask": inputs["mel_mask"]})
    assert "25" in message
    assert "35" in message
    tokens = inputs["tokens"].clone()
    tokens[0, 5] = 1
    message = refusal(bare, **inputs | {"tokens": tokens})
    assert "24" in message
    assert "25" in message


def test_an_encoder_output_must_fit_the_tokens_too(bare):
    inputs = given()
    audio = bare.encode(inputs["mel"], mel_mask=inputs["mel_mask"])
    rest = {name: inputs[name] for name in ("tokens", "attention_mask")}
    assert bare(audio=audio, mel_mask=inputs["mel_mask"], **rest).isfinite().all()
    refusal(bare, audio=audio, **rest)  # without a mask, all of both windows
    refusal(bare, audio=audio[:1], mel_mask=inputs["mel_mask"][:1], **rest)


@pytest.mark.parametrize("shape", [(2, 8, 99), (2, 8, 101), (2, 7, 100), (2, 100, 8), (3, 8, 100)])
def test_a_mel_of_another_shape_is_refused(bare, shape):
    refusal(bare, **given() | {"mel": torch.zeros(shape)})


def test_a_mel_is_told_what_shape_it_should_have(bare):
    message = refusal(bare, **given() | {"mel": torch.zeros(2, 8, 99)})
    assert "8" in message
    assert "100" in message
    assert "[2, 8, 99]" in message


@pytest.mark.parametrize("shape", [(2, 99), (1, 100), (3, 100)])
def test_a_mask_of_the_mel_of_another_shape_is_refused(bare, shape):
    assert "mel_mask" in refusal(bare, **given() | {"mel_mask": torch.ones(shape)})


@pytest.mark.parametrize("zeros", [slice(0, 1), slice(10, 20), slice(0, 61)])
def test_a_mask_of_the_mel_must_be_ones_and_then_zeros(bare, zeros):
    inputs = given()
    inputs["mel_mask"][0, zeros] = 0
    assert "mel_mask" in refusal(bare, **inputs)


def test_a_clip_too_short_for_a_position_is_refused_as_frames_too(bare):
    """Two frames would be no position; the other clip's tokens are all there."""
    inputs = given()
    inputs["mel_mask"][1, 2:] = 0
    tokens = inputs["tokens"].clone()
    tokens[1][tokens[1] == tiny.AUDIO] = 1
    refusal(bare, **inputs | {"tokens": tokens})


@pytest.mark.parametrize("change", [(0, 1), (0, -1), (1, 0)])
def test_an_attention_mask_of_another_shape_is_refused(bare, change):
    inputs = given()
    rows, columns = (n + c for n, c in zip(inputs["tokens"].shape, change, strict=True))
    mask = torch.ones(rows, columns, dtype=torch.long)
    assert "attention_mask" in refusal(bare, **inputs | {"attention_mask": mask})


def test_an_attention_mask_has_no_holes(bare):
    inputs = given(n_text=3)
    inputs["attention_mask"][0, 1] = 0
    assert "attention_mask" in refusal(bare, **inputs)


def test_an_attention_mask_hides_no_audio(bare):
    inputs = given(n_text=3)
    inputs["attention_mask"][0, :4] = 0
    assert "attention_mask" in refusal(bare, **inputs)


@pytest.mark.parametrize("token", [-1, 80, 1000])
def test_tokens_out_of_the_vocabulary_are_refused(bare, token):
    inputs = given()
    inputs["tokens"][0, -1] = token
    message = refusal(bare, **inputs)
    assert "79" in message
    assert str(token) in message


def test_a_run_that_starts_behind_its_inputs_is_refused(bare):
    inputs = given()
    mask = {"attention_mask": inputs["attention_mask"]}
    resid = bare(**inputs, stop_at="decoder.1")
    assert bare(resid=resid, start_at="decoder.1", **mask).isfinite().all()
    refusal(bare, start_at="decoder.1", **mask)
    refusal(bare, resid=resid, start_at="decoder.1", tokens=inputs["tokens"])
    refusal(bare, resid=resid, start_at="decoder.1", stop_at="encoder.1")
    refusal(bare, **inputs, resid=resid, start_at="decoder.1")
    refusal(bare, resid=resid[..., :-1], start_at="decoder.1", **mask)


@pytest.mark.parametrize("place", ["decoder", "decoder.3", "encoder.-1", "projector.0", "1"])
def test_a_place_that_is_none_is_refused(bare, place):
    refusal(bare, **given(), stop_at=place)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("decoder.0.attn.hook_zz", "decoder.0.attn.hook_z"),
        ("hook_audio_pool", "hook_encoder_pool"),
        ("projector.hook_outt", "projector.hook_out"),
        ("decoder.0.mlp.hook_linear", "decoder.0.mlp.hook_pre_linear"),
        ("decoder.5.attn.hook_rot_q", "the decoder's layers are 0 to 1"),
    ],
)
def test_an_unknown_hook_is_answered_with_those_that_come_near(bare, asked, says):
    hook = (asked, lambda x, hook: None)
    assert says in refusal(bare.run_with_hooks, fwd_hooks=[hook], error=UnknownHookError, **given())
    assert not bare.has_hooks


@pytest.mark.parametrize("name", ["decoder.0.cross_attn.hook_z", "hook_decoder_pos_embed"])
def test_there_is_neither_cross_attention_nor_an_embedding_of_positions(bare, name):
    assert name not in bare.hook_table
    refusal(bare.run_with_cache, names_filter=name, error=UnknownHookError, **given())
