"""One process of two (tests/test_store.py): stores organisms of stacks that lie in different ways over both."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from grain import MapDataset

from ia_jax.adapters import save, store
from ia_jax.errors import CheckpointError
from ia_jax.models.lora import adapter_shardings
from ia_jax.parallel import distributed
from ia_jax.parallel.mesh import make_mesh, put_on_mesh
from ia_jax.training.checkpoints import Keeper
from tests.stored import adapter, metadata


def main(directory):
    assert distributed.start()
    me = jax.process_index()
    written, true = [], save.write_arrays

    def write(path, leaves):
        written.append(path.name.removesuffix(".saving"))
        true(path, leaves)

    save.write_arrays = write
    host = jax.tree.map(lambda *x: np.stack(x), *map(adapter, range(4)))

    def stack(mesh):
        return put_on_mesh(host, adapter_shardings(host, mesh, organisms=True))

    with jax.set_mesh(make_mesh(2, 2)):
        assert save._owners(stack(make_mesh(2, 2))) == [0, 0, 1, 1]
        # Unevenly: process 0 writes three, process 1 one. Orbax would name its next barriers by that.
        items = [(i, directory / str(i), metadata(str(i))) for i in (0, 1, 3)]
        told = store.save_organisms(stack(make_mesh(2, 2)), items)
        one = jax.tree.map(lambda x: x[2], host)
        told += store.save_adapters([(directory / "2", one, metadata("2"))])
        told = [told[i].content_hash for i in (0, 1, 3, 2)]
        state = stack(make_mesh(2, 2))
        iterator = iter(MapDataset.range(3).to_iter_dataset())
        with Keeper(directory / "state") as keeper:
            keeper.save(1, state, iterator)
            keeper.wait()
            keeper.save(2, state, iterator)
        (directory / f"told_{me}.json").write_text(json.dumps(told))
        try:
            broken = jax.tree.map(lambda x: np.where(np.arange(4).reshape(4, 1, 1, 1) == 2, np.nan, x), host)
            broken = put_on_mesh(broken, adapter_shardings(broken, make_mesh(2, 2), organisms=True))
            store.save_organisms(broken, [(2, directory / "bad", metadata("bad"))])
        except CheckpointError as error:
            (directory / f"error_{me}.txt").write_text(str(error))
    with jax.set_mesh(make_mesh(1, 4)):  # every organism has parts on both
        spread = stack(make_mesh(1, 4))
        assert save._owners(spread) == [None] * 4
        store.save_organisms(spread, [(i, directory / f"s{i}", metadata(f"s{i}")) for i in (0, 3)])
    (directory / f"written_{me}.json").write_text(json.dumps(sorted(written)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
