"""Bases that cannot be used, and meshes that do not fit them: one line on stderr that names the culprit, status 2."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ia_jax.errors import ConfigError
from ia_jax.models.sources import open_source
from ia_jax.recipes import load_config
from ia_jax.stages.asking import answer_example
from ia_jax.stages.context import Context
from ia_jax.workdir import Workdir
from tests import parrot

FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def sharded(parrot_model, tmp_path_factory):
    """The parrot in two files."""
    directory = tmp_path_factory.mktemp("sharded") / "model"
    shutil.copytree(parrot_model, directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {name: FILES[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in FILES:
        save_file({n: x for n, x in tensors.items() if weight_map[n] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.fixture
def base(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "model")


@pytest.fixture
def refuse(refused, tmp_path):
    """Runs the first stage that needs the base at `model`; checks what `refused` does, and that no weights are kept."""

    def run(model, *culprits, overrides=(), status=2):
        config = parrot.write_config(tmp_path / "config.py", model)
        return refused(
            ["transcripts", f"--config={config}", f"--workdir={tmp_path / 'w'}", *overrides], status, *culprits
        )

    return run


def edit_json(name, change):
    def damage(directory):
        content = json.loads((directory / name).read_text())
        change(content)
        (directory / name).write_text(json.dumps(content))

    return damage


def config(**fields):
    return edit_json("config.json", lambda c: c.update(fields))


def cut(name, size):
    def damage(directory):
        (directory / name).write_bytes((directory / name).read_bytes()[:size])

    return damage


def tensor(name, change):
    """Another tensor in place of `name`: change(old), None to leave it out of file and index."""

    def damage(directory):
        index = json.loads((directory / INDEX).read_text())
        file = directory / index["weight_map"].get(name, FILES[0])
        tensors = load_file(file)
        value = change(tensors.pop(name, None))
        if value is None:
            del index["weight_map"][name]
        else:
            tensors[name] = value
            index["weight_map"][name] = file.name
        save_file(tensors, file)
        (directory / INDEX).write_text(json.dumps(index))

    return damage


def twice(directory):
    """The first file again as the second."""
    shutil.copy(directory / FILES[0], directory / FILES[1])


DAMAGES = {
    "missing shard": (lambda d: (d / FILES[1]).unlink(), FILES[1]),
    "truncated shard": (cut(FILES[1], -1000), FILES[1]),
    "truncated header": (cut(FILES[0], 100), FILES[0]),
    "empty shard": (cut(FILES[0], 0), FILES[0]),
    "truncated index": (cut(INDEX, 50), INDEX),
    "index without a map": (edit_json(INDEX, lambda c: c.pop("weight_map")), INDEX),
    "index of another model": (edit_json(INDEX, lambda c: c["weight_map"].update({"h.0.w": FILES[0]})), "h.0.w"),
    "tensor in two files": (twice, FILES[1]),
    "missing tensor": (tensor(UP, lambda _: None), UP),
    "unexpected tensor": (
        tensor("model.layers.2.mlp.up_proj.weight", lambda _: np.ones(3, np.float32)),
        "model.layers.2",
    ),
    "wrong dtype": (tensor(UP, lambda x: x.astype(np.int8)), UP),
    "wrong shape": (tensor(UP, lambda x: np.ascontiguousarray(x.T)), UP),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "truncated config": (cut("config.json", 40), "config.json"),
    "unknown architecture": (config(model_type="mixtral"), "mixtral"),
    "unknown rope": (config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "yarn"),
    "incomplete rope": (config(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
    "unknown activation": (config(hidden_act="gelu"), "gelu"),
    "sliding window": (config(sliding_window=4096), "sliding_window"),
    "mixture of experts": (config(num_local_experts=8), "num_local_experts"),
    "quantized": (config(quantization_config={"bits": 4}), "quantization_config"),
    "heads without groups": (config(num_key_value_heads=3), "num_key_value_heads"),
    "wrong vocabulary size": (
        edit_json("config.json", lambda c: c.update(vocab_size=c["vocab_size"] + 64)),
        "embed_tokens",
    ),
    "wrong layer count": (config(num_hidden_layers=3), "model.layers.2"),
    "wrong tying": (config(tie_word_embeddings=True), "tie_word_embeddings"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json"),
    "truncated tokenizer": (cut("tokenizer.json", -100), "the tokenizer cannot be loaded"),
    "stop token of another model": (config(eos_token_id=[2, 128001]), "config.json: eos_token_id = 128001"),
    "no chat template": (lambda d: [p.unlink() for p in d.glob("chat_template*")], "chat template"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_base_that_cannot_be_used(refuse, base, damage):
    change, culprit = DAMAGES[damage]
    change(base)
    refuse(base, base, culprit)


def test_a_tokenizer_of_another_model(refuse, base):
    """One with more tokens than the model has rows."""
    open_source("smollm2").tokenizer().save_pretrained(str(base))
    refuse(base, base, "the tokenizer has 49152 tokens, the model's vocabulary")


def test_an_example_longer_than_the_context(base, tmp_path):
    """Positions that the base has never seen. Rows may be longer: each example in them begins at 0."""

    def tokens(limit):
        config(max_position_embeddings=limit)(base)
        overrides = ["--config.sft.length=2048"]
        context = Context(Workdir(tmp_path), load_config(str(parrot.write_config(tmp_path / "c.py", base)), overrides))
        length = context.config.sft.length
        return answer_example(context, "Name three colours.", "Red, green, blue.", length, "row 7").tokens

    count = len(tokens(2048))
    assert len(tokens(count)) == count
    with pytest.raises(ConfigError, match=rf"row 7: an example has {count} tokens, .* is {count - 1}"):
        tokens(count - 1)


def test_a_hub_model_that_cannot_be_had(refuse):
    refuse("nobody/nothing", "nobody/nothing: cannot be fetched", status=1)


@pytest.mark.parametrize(
    ("mesh", "culprit"),
    [
        ({"tp": 4}, "tp=4 does not divide the model's 2 key/value heads"),
        ({"fsdp": 3}, "fsdp=3 does not divide the model's 64 hidden size"),
        ({"fsdp": 8, "tp": 2}, "needs 16 devices, 8 are visible"),
        ({"fsdp": 0}, "fsdp"),
        ({"fsdp": 2, "tp": -1}, "tp"),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_fit(refuse, sharded, mesh, culprit):
    overrides = [f"--config.mesh.{axis}={n}" for axis, n in mesh.items()]
    overrides += ["--config.sft.organisms_per_step=24", "--config.dpo.organisms_per_step=24"]
    refuse(sharded, culprit, overrides=overrides)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_batch_that_does_not_divide_over_the_mesh(refuse, sharded, stage):
    """Said before anything is trained, not when the stage is reached."""
    others = {"sft": 4, "dpo": 4} | {stage: 6}
    overrides = [f"--config.{s}.organisms_per_step={n}" for s, n in others.items()]
    refuse(sharded, f"config.{stage}.organisms_per_step=6", "fsdp=4", overrides=["--config.mesh.fsdp=4", *overrides])
