import pytest
import torch

from reid_core.memory.pseudo_labels import PseudoLabelMemory
from tests.reference import snnet as reference

IMAGES = 11


def fill(claims: list[list[int]]) -> PseudoLabelMemory:
    memory = PseudoLabelMemory(len(claims))
    pairs = [(i, j) for i, claim in enumerate(claims) for j in claim]
    memory.write(torch.arange(len(claims)), torch.tensor(pairs))
    return memory


def example() -> PseudoLabelMemory:
    """methods.md 5.7, PLM."""
    return fill([[0, 1, 4], [1, 2], [1, 2], [3], [3, 4]])


def of(mask: torch.Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask]


def dense(memory: PseudoLabelMemory) -> torch.Tensor:
    return memory.rows(torch.arange(memory.images))


def check(memory: PseudoLabelMemory, want: torch.Tensor) -> None:
    everything = torch.arange(memory.images)
    assert torch.equal(memory.rows(everything), want)
    assert torch.equal(memory.columns(everything), want.T)
    for key in (memory.claim_E, memory.claimed_by_E):
        assert (key.diff() > 0).all()


def random_writes(steps: int, seed: int) -> tuple[PseudoLabelMemory, torch.Tensor]:
    """The memory and a matrix of bits after random writes; rows repeat, some become empty or full."""
    g = torch.Generator().manual_seed(seed)
    memory, want = PseudoLabelMemory(IMAGES), torch.eye(IMAGES, dtype=torch.bool)
    for step in range(steps):
        row = torch.randint(0, IMAGES, (4,), generator=g)
        mask = torch.rand(IMAGES, IMAGES, generator=g) < (0.0, 0.2, 1.0)[step % 3]
        place, column = mask[row].nonzero().unbind(1)
        shuffled = torch.randperm(len(place), generator=g)
        memory.write(row, torch.stack([row[place], column], dim=1)[shuffled])
        want[row] = mask[row]
    return memory, want


def test_rows_and_columns_by_hand() -> None:
    memory = example()
    assert of(memory.columns(torch.tensor([0, 1]))) == [[0], [0, 1, 2]]
    assert of(memory.rows(torch.tensor([1, 0, 1]))) == [[1, 2], [0, 1, 4], [1, 2]]


def test_every_image_first_claims_itself() -> None:
    check(PseudoLabelMemory(IMAGES), torch.eye(IMAGES, dtype=torch.bool))


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_equals_a_matrix_of_bits(steps: int) -> None:
    check(*random_writes(steps, seed=steps))


def test_the_order_of_writes_does_not_matter() -> None:
    pairs = torch.tensor([(2, 5), (2, 2), (7, 7), (7, 1), (7, 5)])
    together, apart = PseudoLabelMemory(IMAGES), PseudoLabelMemory(IMAGES)
    together.write(torch.tensor([2, 7]), pairs)
    apart.write(torch.tensor([7]), pairs[2:])
    apart.write(torch.tensor([2]), pairs[:2].flip(0))
    assert torch.equal(together.claim_E, apart.claim_E)
    assert torch.equal(together.claimed_by_E, apart.claimed_by_E)


def test_symmetric_claims_read_the_same_in_rows_and_columns() -> None:
    _, mask = random_writes(8, seed=0)
    both = mask | mask.T
    memory = fill(of(both))
    some = torch.tensor([4, 0, 9])
    assert torch.equal(memory.rows(some), memory.columns(some))


def test_components_need_claims_in_both_directions() -> None:
    assert example().components().tolist() == [0, 1, 1, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_components_equal_the_twin(seed: int) -> None:
    memory, _ = random_writes(5, seed)
    claims = [set(row) for row in of(dense(memory))]
    assert memory.components().tolist() == reference.components(claims)


def test_state_of_any_size_is_restored(tmp_path) -> None:
    memory, want = random_writes(7, seed=3)
    torch.save(memory.state_dict(), tmp_path / "state.pt")
    restored = PseudoLabelMemory(IMAGES)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    check(restored, want)
    assert torch.equal(restored.claim_E, memory.claim_E)
    assert torch.equal(restored.claimed_by_E, memory.claimed_by_E)


def test_it_is_never_a_matrix() -> None:
    """300,000 images would need 90 GB as bytes."""
    memory = PseudoLabelMemory(300_000)
    memory.write(torch.tensor([299_999]), torch.tensor([(299_999, 0), (299_999, 299_999)]))
    assert memory.columns(torch.tensor([0])).sum() == 2
    assert len(memory.claim_E) == 300_001


def test_precision_of_the_model_leaves_it_alone() -> None:
    assert example().to(torch.float64).claim_E.dtype == torch.int64
