"""What holds for the models of every family."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.contracts import CausalModel, ModelConfig
from backends.loading import load_model, model_family
from backends.models import gpt2, llama, qwen
from backends.models.files import WEIGHTS_FILE, read_weights, write_weights
from backends.models.transformer import as_it_comes
from backends.models.transformer_family import TransformerFamily
from backends.registry import MODEL_FAMILIES, MODEL_SIZES, UNBOUNDED_FAMILIES
from trainer_app.errors import FieldError, ModelIncompatible

FAMILIES = sorted(MODEL_FAMILIES)
VOCAB = 40
CONTEXT = 24


@pytest.mark.parametrize("family", FAMILIES)
def test_the_registry_knows_whose_context_has_no_bound(family: str) -> None:
    assert model_family(family).context_is_bounded == (family not in UNBOUNDED_FAMILIES)


def config(family: str, size: str | None = None) -> ModelConfig:
    return ModelConfig(
        family=family,
        size=size or MODEL_SIZES[family][0],
        vocab_size=VOCAB,
        max_seq_len=CONTEXT,
    )


def build(family: str, seed: int = 0) -> CausalModel:
    torch.manual_seed(seed)
    return model_family(family).build(config(family))


def some_ids(batch: int = 2, tokens: int = CONTEXT) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Iterator[CausalModel]:
    model = build(request.param).eval()
    with torch.inference_mode():
        yield model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_registry_names_the_sizes_that_a_family_has(family: str) -> None:
    assert tuple(model_family(family).sizes) == MODEL_SIZES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_size_is_refused_with_the_known_ones(family: str) -> None:
    with pytest.raises(FieldError, match="model_size: 'huge' is not one of tiny, "):
        model_family(family).build(config(family, "huge"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_are_counted_without_building_the_model(family: str) -> None:
    counted = model_family(family).parameter_count(config(family))
    assert counted == sum(parameter.numel() for parameter in build(family).parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_weights(family: str) -> None:
    first, again, other = (build(family, seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_model_expects_every_token_alike(family: str) -> None:
    ids_BT = some_ids()
    with torch.inference_mode():
        logits_BTV = build(family).eval()(ids_BT)
    loss = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(torch.tensor(VOCAB).log().item(), rel=0.05)


def test_the_logits_of_a_token_do_not_depend_on_later_ones(model: CausalModel) -> None:
    ids_BT = some_ids()
    changed_BT = ids_BT.clone()
    changed_BT[:, 10:] = (changed_BT[:, 10:] + 1) % VOCAB
    before_BTV, after_BTV = model(ids_BT), model(changed_BT)
    torch.testing.assert_close(before_BTV[:, :10], after_BTV[:, :10])
    assert not torch.allclose(before_BTV[:, 10:], after_BTV[:, 10:])


@pytest.mark.parametrize("parts", [(24,), (1,) * 24, (7, 1, 5, 11)])
def test_reading_with_a_cache_gives_the_logits_of_reading_whole(
    model: CausalModel, parts: tuple[int, ...]
) -> None:
    ids_BT = some_ids()
    whole_BTV = model(ids_BT)
    cache = model.new_cache(2, CONTEXT)
    for part_BT in torch.split(ids_BT, list(parts), dim=1):
        logits_BV = model.decode(part_BT, cache)
        torch.testing.assert_close(logits_BV, whole_BTV[:, cache.length - 1], rtol=1e-4, atol=1e-5)
    assert cache.length == CONTEXT


def test_in_bfloat16_only_the_products_lose_digits(model: CausalModel) -> None:
    if model.config.family == "char_lstm" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no LSTM in bfloat16")
    ids = some_ids()
    exact = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(ids)
    torch.testing.assert_close(rounded.float(), exact.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"char_lstm"}))
def test_a_norm_turns_autocast_off_only_where_it_is_on_and_breaks_no_compiled_graph(
    family: str,
) -> None:
    torch.compiler.reset()  # it counts how often it compiles for other models of the process, too
    model = build(family).eval()
    compiled = torch.compile(model.hidden, fullgraph=True, dynamic=False, backend="eager")
    ids = some_ids()
    with torch.no_grad():  # one compiled form, used where autocast is off, on and off again
        for enabled in (False, True, False):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                expected = model.hidden(ids)
                assert expected.dtype == (torch.bfloat16 if enabled else torch.float32)
                assert torch.equal(compiled(ids), expected)
                off = as_it_comes(expected)
                assert isinstance(off, torch.autocast) == enabled
                with off:
                    assert not torch.is_autocast_enabled("cpu")


def test_rows_of_a_cache_can_be_repeated_and_dropped(model: CausalModel) -> None:
    ids_BT = some_ids(batch=3)
    cache = model.new_cache(3, CONTEXT)
    model.decode(ids_BT[:, :10], cache)
    rows_B = torch.tensor([2, 0, 2, 2])
    cache.reorder(rows_B)
    logits_BV = model.decode(ids_BT[rows_B, 10:12], cache)
    torch.testing.assert_close(logits_BV, model(ids_BT[rows_B, :12])[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_the_same(family: str, tmp_path: Path) -> None:
    saved = build(family).eval()
    model_family(family).save(saved, tmp_path)
    loaded = load_model(tmp_path).eval()
    assert loaded.config == saved.config
    with torch.inference_mode():
        assert torch.equal(loaded(some_ids()), saved(some_ids()))
    # and learns: nothing of it is left on the meta device or detached
    loaded(some_ids()).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_does_not_change_with_its_file(family: str, tmp_path: Path) -> None:
    model_family(family).save(build(family), tmp_path)
    loaded = load_model(tmp_path).eval()
    with torch.inference_mode():
        before = loaded(some_ids())
        path = tmp_path / WEIGHTS_FILE
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(bytes(size))  # in place
        assert torch.equal(loaded(some_ids()), before)
        os.truncate(path, 0)  # a map of it would be no memory any more
        assert torch.equal(loaded(some_ids()), before)


@pytest.mark.parametrize("family", [gpt2.FAMILY, llama.FAMILY, qwen.FAMILY])
def test_no_tensor_that_was_read_is_kept_beside_what_is_made_of_it(
    family: TransformerFamily, tmp_path: Path
) -> None:
    model = family.build(config(family.name))
    family.save(model, tmp_path)
    tensors = read_weights(tmp_path)
    own = family.own_tensors(tensors, model)
    assert not tensors
    assert own.keys() == model.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_floating_point_numbers_are_cast(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    write_weights({"weight": torch.tensor([0.5, -2.0], dtype=dtype)}, tmp_path)
    (weight,) = read_weights(tmp_path).values()
    assert weight.dtype == torch.float32
    assert weight.tolist() == [0.5, -2.0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        (torch.int64, "I64"),
        (torch.uint8, "U8"),
        (torch.bool, "BOOL"),
        (torch.complex64, "C64"),
        (None, "F4"),
    ],
)
def test_a_tensor_of_no_floating_point_numbers_is_refused_with_its_name_and_dtype(
    family: str, dtype: torch.dtype | None, named: str, tmp_path: Path
) -> None:
    model_family(family).save(build(family), tmp_path)
    path = tmp_path / WEIGHTS_FILE
    tensors = load_file(path)
    name = min(tensors)
    if dtype is None:  # of half a byte each
        data = torch.zeros(tensors[name].numel() // 2, dtype=torch.uint8)
        tensors[name] = data.view(torch.float4_e2m1fn_x2)
    else:
        tensors[name] = tensors[name].to(dtype)
    save_file(tensors, path)
    with pytest.raises(ModelIncompatible, match=f"{re.escape(name)} is of {named}, no floating"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_weights_give_equal_files(family: str, tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
        model_family(family).save(build(family), folder)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors"]
    assert all(
        (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_token_embedding_can_be_frozen(family: str) -> None:
    model = build(family)
    (embedding,) = model_family(family).embedding_parameters(model)
    assert embedding.shape[0] == VOCAB
    embedding.requires_grad_(False)
    model(some_ids()).sum().backward()
    assert embedding.grad is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, None])
def test_damaged_or_missing_weights_are_refused(
    family: str, damage: bytes | None, tmp_path: Path
) -> None:
    model_family(family).save(build(family), tmp_path)
    if damage is None:
        (tmp_path / WEIGHTS_FILE).unlink()
    else:
        (tmp_path / WEIGHTS_FILE).write_bytes(damage)
    with pytest.raises(ModelIncompatible, match=r"model\.safetensors cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"model_type": "bert"}', "[" * 100_000]
)
def test_a_folder_without_a_known_config_is_refused(
    family: str, content: str | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    for load in (load_model, model_family(family).load):
        with pytest.raises(ModelIncompatible, match=r"config\.json"):
            load(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_config_makes_a_model_of_more_layers_than_there_are_weights(
    family: str, tmp_path: Path
) -> None:
    model_family(family).save(build(family), tmp_path)
    path = tmp_path / "config.json"
    name = {"gpt2": "n_layer", "char_lstm": "num_layers"}.get(family, "num_hidden_layers")
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 10_000_000}))
    with pytest.raises(ModelIncompatible, match=r"10000000 layers, but model\.safetensors has"):
        load_model(tmp_path)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FieldError, match="model_family: 'bert' is not one of gpt2, "):
        model_family("bert")


def test_an_error_of_the_disk_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).mkdir()
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        write_weights({"weight": torch.zeros(1)}, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_are_no_plain_file_are_refused_and_not_waited_for(
    family: str, sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    model_family(family).save(build(family), tmp_path)
    weights = tmp_path / "model.safetensors"
    if sharded:
        weights = weights.rename(tmp_path / "model-1-of-1.safetensors")
        index = {"weight_map": {"any": weights.name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(tmp_path)
    weights.unlink()

    def refused() -> None:
        with pytest.raises(ModelIncompatible, match=f"{weights.name} cannot be read"):
            load_model(tmp_path)

    refused()
    os.mkfifo(weights)
    refused()
    weights.unlink()
    for target in (Path("/dev/zero"), weights):
        weights.symlink_to(target)
        refused()
        weights.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(weights.name)
        refused()
    weights.unlink()
    weights.mkdir()
    refused()
