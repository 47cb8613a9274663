"""What a student learns from its teacher. b queries of this rank, B of all ranks, C prototypes, D feature size.

The teacher's side is constant: gradient to the student only.
"""

from torch import Tensor

from reid_core.distributed import gather_with_grad


def probability_distance(
    x_bD: Tensor,
    teacher_bD: Tensor,
    prototype_CD: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    *,
    over_batch: bool = False,
) -> Tensor:
    """Squared distance of the class probabilities of student and teacher, (b,): HDCPD Eq. 5 to 7.

    A lower temperature of the teacher sharpens its probabilities: softmax(z / 0.5) is proportional to
    softmax(z) squared.

    Args:
        x_bD: unit embeddings of the student.
        teacher_bD: unit embeddings of the teacher, of another view of the same images.
        prototype_CD: one row a class, e.g. means of memory rows.
        student_temperature: > 0; 0.05 is usual.
        teacher_temperature: > 0; 0.025 is usual.
        over_batch: take the softmax over the images of the global batch instead of over the classes: a
            defect of the release's ClusterContrast variant, for parity.
    """
    probability = _softmax_over_batch if over_batch else _softmax_over_classes
    prototype_CD = prototype_CD.detach()
    student_bC = probability(x_bD @ prototype_CD.T / student_temperature)
    teacher_bC = probability(teacher_bD.detach() @ prototype_CD.T / teacher_temperature)
    return (student_bC - teacher_bC).square().sum(dim=1)


def feature_distance(x_bD: Tensor, teacher_bD: Tensor) -> Tensor:
    """Squared distance of the embeddings, (b,): Mean Teacher (Tarvainen, Valpola, NIPS 2017) on unit rows."""
    return (x_bD - teacher_bD.detach()).square().sum(dim=1)


def _softmax_over_classes(logits_bC: Tensor) -> Tensor:
    return logits_bC.softmax(dim=1)


def _softmax_over_batch(logits_bC: Tensor) -> Tensor:
    return (logits_bC - gather_with_grad(logits_bC).logsumexp(dim=0)).exp()
