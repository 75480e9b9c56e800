"""Named problems: model maker, loss, train, validation, test, metric."""

from dynprune.tasks._cifar import cifar10
from dynprune.tasks._digits import digits
from dynprune.tasks._make import TASKS, check_files, download, make, remake
from dynprune.tasks._mnist import fashion_mnist, mnist
from dynprune.tasks._model_names import MODELS, model_maker
from dynprune.tasks._models import ACTIVATIONS, lenet_300_100, mlp, small_conv_net
from dynprune.tasks._problem import Problem, accuracy
from dynprune.tasks._resnet import resnet
from dynprune.tasks._user import LOSSES, load_user, mse

__all__ = [
    "ACTIVATIONS",
    "LOSSES",
    "MODELS",
    "TASKS",
    "Problem",
    "accuracy",
    "check_files",
    "cifar10",
    "digits",
    "download",
    "fashion_mnist",
    "lenet_300_100",
    "load_user",
    "make",
    "mlp",
    "mnist",
    "model_maker",
    "mse",
    "remake",
    "resnet",
    "small_conv_net",
]
