"""The published experiments as plain values; the files in recipes/ say what each costs and what to expect of it.

Start and rate of the steps are those with which the published figures were taken, not the present defaults.
"""

from polarspike.experiment import Recipe
from polarspike.specs import QuantSpec, TrainSpec

# Command, cost and expected result: recipes/demo.py
DEMO = Recipe(
    data="mnist-5k",
    model="cnn",
    batch_size=64,
    ann=TrainSpec(epochs=5, learning_rate=0.1),
    quant=QuantSpec(negative=0, positive=15, init="entropy"),
    qann=TrainSpec(epochs=10, learning_rate=0.1, warmup_epochs=0.5, step_rate=0.0),
)

# Command, cost and expected result: recipes/fashion_mnist.py
FASHION_MNIST = Recipe(
    data="fashion-mnist",
    model="resnet20",
    ann=TrainSpec(epochs=8, learning_rate=0.2, precision="bf16"),
    quant=QuantSpec(negative=0, positive=15, init="entropy"),
    qann=TrainSpec(epochs=7, learning_rate=0.1, precision="bf16", warmup_epochs=0.5, step_rate=0.0),
)

#: The recipe that ``polarspike train`` starts from, by dataset; for any other dataset it is ``Recipe()``.
PUBLISHED = {recipe.data: recipe for recipe in (DEMO, FASHION_MNIST)}
