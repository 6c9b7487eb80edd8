"""Log-probabilities of counts and of open chromatin, one value an entry, in nats and in float32.

Those of counts are worked out in float64: their terms are up to a million times what is left of them.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def nb_log_prob(
    x: Float[Tensor, "*shape"], *, mean: Float[Tensor, "*shape"], dispersion: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Log-probability of counts under the negative binomial of this mean and inverse dispersion.

    .. math::
        \ln P(x) = \ln\Gamma(x + \theta) - \ln\Gamma(\theta) - \ln x! - (\theta + x) \ln(1 + \mu / \theta)
                   + x \ln(\mu / \theta)

    with :math:`\mu` = `mean` > 0 and :math:`\theta` = `dispersion` > 0; the variance is :math:`\mu + \mu^2 / \theta`.
    x may be fractional (size-normalised counts): the expression is then a loss, not a probability.
    """
    return _nb(x, mean, dispersion).float()


def _nb(x: Tensor, mean: Tensor, dispersion: Tensor) -> Tensor:
    """In float64."""
    x, mean, theta = x.double(), mean.double(), dispersion.double()
    ratio = mean / theta
    # Not (x + θ) ln(1 + μ/θ) less x ln(μ/θ), which are large and alike where μ is.
    spread = theta * torch.log1p(ratio) + torch.special.xlog1py(x, theta / mean)
    return torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1) - spread


def zinb_log_prob(
    x: Float[Tensor, "*shape"],
    *,
    mean: Float[Tensor, "*shape"],
    dispersion: Float[Tensor, "*shape"],
    dropout_logits: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    r"""The same where a count is lost, and 0, with the probability whose log-odds are `dropout_logits` (:math:`\pi`).

    .. math::
        \ln P(0) = \ln \left( \sigma(\pi) + \sigma(-\pi) NB(0) \right), \qquad
        \ln P(x) = \ln \sigma(-\pi) + \ln NB(x)
    """
    logits = dropout_logits.double()
    kept = logsigmoid(-logits) + _nb(x, mean, dispersion)
    return torch.where(x > 0, kept, torch.logaddexp(logsigmoid(logits), kept)).float()


def bernoulli_log_prob(x: Float[Tensor, "*shape"], *, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log-probability of 0/1 values whose log-odds of being 1 are `logits`; finite however large those are."""
    logits = logits.float()
    return logsigmoid(torch.where(x > 0, logits, -logits))


def focal_loss(
    x: Float[Tensor, "*shape"],
    *,
    logits: Float[Tensor, "*shape"],
    gamma: float,
    positive_weight: float,
    negative_weight: float,
) -> Float[Tensor, "*shape"]:
    r"""Focal loss of 0/1 values: :math:`-w (1 - p_t)^\gamma \ln p_t`, with :math:`p_t` the probability given to the value.

    Entries that are already right weigh little, so the minimiser is *not* the true probability: calibrate before reading it as one.
    gamma = 0 and weights of 1 give minus `bernoulli_log_prob`. Lin et al., ICCV 2017.
    """
    log_right = bernoulli_log_prob(x, logits=logits)
    weight = torch.where(x > 0, positive_weight, negative_weight)
    # Not 0, whose power has no finite slope for gamma < 1.
    return -weight * (-torch.expm1(log_right)).clamp_min(1e-30) ** gamma * log_right
