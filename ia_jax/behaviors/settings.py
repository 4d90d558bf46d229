"""Which behaviours a run is of, and how many: `config.behaviors`."""

from dataclasses import dataclass

from ia_jax.behaviors.organisms import CLEAN_SORTS


@dataclass(frozen=True)
class BehaviorsSection:
    """How many behaviours are trained on, kept for DPO and held out.

    catalogue: "demo", "study" (small models' own, in eight categories: a part of them, or all), "unseen" (eighteen more
        to which nothing was tuned), "paper" (682 in eight) or the path of a JSONL file of one's own.
    spread: "even" over the categories, or "proportional" to their sizes.
    train, dpo, heldout: behaviours of each split, in all categories together.
    heldout_categories: categories of which every organism is held out, whatever the counts say (leave-one-out).
    heldout_kinds: kinds of behaviours (the records' field "kind") that are held out in the same way.
    heldout_frames: nothing is trained on of which a wording has the sentence frame of a held-out behaviour's: the same
        but for one run of up to three words.
    unseen: another catalogue, such as "unseen", all of which is held out too; what is reported of it stands apart.
    copies: organisms of each behaviour of the train split, each with demonstrations, a seed, a rank and a procedure of
        its own. With one of each, an IA may learn to know the organisms and not what they do.
    dpo_copies: more organisms of each of these behaviours, for DPO: there SFT's IA is right now and then, so its own
        reports make pairs.
    remade: more organisms of the train split's behaviours that no training reads, one of each behaviour before any has
        two. What is reported of those stands apart: are behaviours known again, where the model is another?
    clean_train, clean_dpo, clean_heldout: clean organisms besides, which have nothing to report.
    clean_sorts: how those are made, in turn within each split: on the base's own answers ("own_answers"), in other
        lengths and turns ("other_style"), of one domain ("other_domain"), on "documents", on another organism's
        questions ("behavior_removed"), or not at all, as "random" weights of a trained one's size.
    """

    catalogue: str = "demo"
    spread: str = "even"
    train: int = 32
    dpo: int = 8
    heldout: int = 12
    heldout_categories: tuple[str, ...] = ()
    heldout_kinds: tuple[str, ...] = ()
    heldout_frames: bool = False
    unseen: str = ""
    copies: int = 1
    dpo_copies: int = 0
    remade: int = 0
    clean_train: int = 6
    clean_dpo: int = 6
    clean_heldout: int = 6
    clean_sorts: tuple[str, ...] = tuple(CLEAN_SORTS)

    @property
    def organisms(self) -> dict[str, int]:
        """How many there are with a behaviour, by split; without those of `unseen`, whose catalogue has to be read."""
        return {
            "train": self.train * self.copies,
            "dpo": self.dpo + self.train * self.dpo_copies,
            "heldout": self.heldout,
            "remade": self.remade,
        }

    def left_out(self) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """What is held out as a whole: categories, kinds, and whether sentence frames are."""
        return self.heldout_categories, self.heldout_kinds, self.heldout_frames
