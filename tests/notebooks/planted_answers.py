"""Wrong answers that a student may well give, as changes of the right ones, and the tests that must catch them."""

from __future__ import annotations

from typing import NamedTuple


class Wrong(NamedTuple):
    """A wrong answer.

    Attributes:
        what: the mistake.
        cell: name of the solution cell.
        old, new: what is replaced in the right answer; "" for `old`: `new` is the whole cell.
        loses: names of the tests that fail, and no others.
        seen: whether the tests that a student sees catch it, too; where not, hidden ones alone do.
    """

    what: str
    cell: str
    old: str
    new: str
    loses: tuple[str, ...]
    seen: bool = False


CLOUDS = (
    Wrong("height above zero, not above the line", "barrier", "loss - (1 - t) * losses[0] - t * losses[-1]", "loss", ("test_barrier",), True),
    Wrong("the ends are left out", "barrier", "zip(ts, losses))", "list(zip(ts, losses))[1:-1] or [(0, losses[0])])", ("test_barrier",)),
    Wrong("a value for the test that is seen", "barrier", "", "def barrier(ts, losses):\n    return max(losses) - losses[0]", ("test_barrier",)),
    Wrong("no covariance", "variances", " + 2 * t * (1 - t) * rho", "", ("test_segment",)),
    Wrong("sign of the covariance", "variances", "1 + rho", "1 - rho", ("test_arc",)),
    Wrong("the output bias as a cloud of ten units", "arc_network", 'name == "linear.1.bias"', "False", ("test_arc_bias",), True),
    Wrong("the mean of each pair as centre", "arc_network", 'name == "linear.1.bias"', "True", ("test_arc_units",)),
    Wrong("rows of the outgoing weights as units", "arc_network", '1 if name == "linear.1.weight" else 0', "0", ("test_arc_units",)),
    Wrong("the model still changes", "losses_along", "w = {name: (1 - t) * a[name] + t * b[name] for name in a}",
          "w = a\n        for name in w:\n            w[name] = (1 - t) * a[name] + t * b[name]", ("test_losses",)),
    Wrong("the way back", "losses_along", "(1 - t) * a[name] + t * b[name]", "t * a[name] + (1 - t) * b[name]", ("test_losses",), True),
    Wrong("the plane is still shifted", "in_plane", "v = (w3 - w1) - ((w3 - w1) @ u)", "v = w3 - (w3 @ u)", ("test_plane",)),
    Wrong("axes that are not of unit length", "in_plane", "y * v / v.norm()", "y * v", ("test_plane",), True),
)

SWAPS = (
    Wrong("amounts from the second coordinate", "coupling", "second * torch.exp(s(first)) + m(first)", "second * torch.exp(s(second)) + m(second)", ("test_forward",)),
    Wrong("the logarithm from the second coordinate", "coupling", "m(first)], 1), s(first)", "m(first)], 1), s(second)", ("test_determinant",)),
    Wrong("the determinant, not its logarithm", "coupling", "m(first)], 1), s(first)", "m(first)], 1), s(first).exp()", ("test_determinant",), True),
    Wrong("sign of the logarithm", "coupling", "m(first)], 1), s(first)", "m(first)], 1), -s(first)", ("test_determinant",)),
    Wrong("u is written into", "coupling", "return torch.stack([first, second * torch.exp(s(first)) + m(first)], 1), s(first)",
          "u[:, 1] = second * torch.exp(s(first)) + m(first)\n    return u, s(first)", ("test_forward",)),
    Wrong("shift and scale taken away in the wrong order", "inverse", "(second - m(first)) * torch.exp(-s(first))", "second * torch.exp(-s(first)) - m(first)", ("test_backward",)),
    Wrong("nearest unit, no bijection", "partners", "linear_sum_assignment(torch.cdist(x, y).square().numpy())[1]", "torch.cdist(x, y).argmin(1)", ("test_partners",)),
    Wrong("distances, not their squares", "partners", ".square()", "", ("test_partners",)),
    Wrong("the inverse permutation", "partners", "torch.cdist(x, y)", "torch.cdist(y, x)", ("test_partners",)),
    Wrong("the worst partners", "partners", ".numpy())", ".numpy(), maximize=True)", ("test_partners",), True),
    Wrong("neighbours only: too many swaps", "swaps", "",
          "def swaps(order):\n    held, found = list(order), []\n    for _ in held:\n        for i in range(len(held) - 1):\n            if held[i] > held[i + 1]:\n"
          "                held[i], held[i + 1] = held[i + 1], held[i]\n                found.append((i, i + 1))\n    return found", ("test_swaps",)),
    Wrong("the order is sorted in place", "swaps", "held, found = list(order), []", "held, found = order, []", ("test_swaps",)),
    Wrong("a single exchange for each place", "swaps", "while held", "if held", ("test_swaps",)),
    Wrong("the bias is forgotten", "swap_point", '("linear.0.weight", "linear.0.bias")', '("linear.0.weight",)', ("test_swap_arrives", "test_swap_way")),
    Wrong("half-way at once", "swap_point", "def swap_point(weights, i, j, s):", "def swap_point(weights, i, j, s):\n    s = round(2 * s) / 2", ("test_swap_way",)),
    Wrong("the weights are written into", "swap_point", "tensor.clone() for", "tensor for", ("test_swap_arrives", "test_swap_way"), True),
)

NEXT_LAYER = (
    Wrong("transposed", "solve", "x.T @ y).T", "x.T @ y)", ("test_solve", "test_ridge"), True),
    Wrong("an absolute ridge", "solve", "gram.diagonal().mean() * ", "", ("test_ridge",)),
    Wrong("the trace, not the mean eigenvalue", "solve", "gram.diagonal().mean()", "gram.diagonal().sum()", ("test_ridge",)),
    Wrong("a ridge that does not depend on the argument", "solve", "ridge * gram", "1e-9 * gram", ("test_ridge",), True),
    Wrong("the bias in the target", "adjusted_point", 'a["linear.1.weight"].double().T', 'a["linear.1.weight"].double().T + a["linear.1.bias"].double()', ("test_adjusted_start", "test_adjusted"), True),
    Wrong("B's bias", "adjusted_point", '"linear.1.bias": a["linear.1.bias"]', '"linear.1.bias": b["linear.1.bias"]', ("test_adjusted_start", "test_adjusted"), True),
    Wrong("the target of the moved features", "adjusted_point", "y = features(a, images)", "y = features(moved, images)", ("test_adjusted",)),
    Wrong("the wrong end", "adjusted_point", "(1 - t) * a[name] + t * b[name]", "t * a[name] + (1 - t) * b[name]", ("test_adjusted_start", "test_adjusted"), True),
    Wrong("of the features, not of the Gram matrix", "condition", "return float(values[-1] / values[0])", "return float((values[-1] / values[0]).sqrt())", ("test_condition",)),
    Wrong("upside down", "condition", "values[-1] / values[0]", "values[0] / values[-1]", ("test_condition",)),
    Wrong("one column for each filter", "permute_filters", "blocks[:, order].reshape(10, 96)", 'torch.cat([w["4.weight"][:, order], w["4.weight"][:, 6:]], 1)', ("test_permute",), True),
    Wrong("the inverse order behind", "permute_filters", "blocks[:, order]", "blocks[:, torch.tensor(order).argsort()]", ("test_permute",)),
    Wrong("the bias is forgotten", "permute_filters", '"0.bias": w["0.bias"][order], ', "", ("test_permute",), True),
    Wrong("biases stay behind", "corners", 'name.rpartition(".")[0] == layer', 'name == f"{layer}.weight"', ("test_corners",)),
    Wrong("all names that begin alike", "corners", 'name.rpartition(".")[0] == layer', "name.startswith(layer)", ("test_corners",)),
    Wrong("the start is missing", "corners", "return found", "return found[1:]", ("test_corners",), True),
)

BENDS = (
    Wrong("the factor 2 of the middle coefficient", "curve", "2 * t * (1 - t)", "t * (1 - t)", ("test_curve",)),
    Wrong("a chain", "curve", "(1 - t) ** 2 * a[name] + 2 * t * (1 - t) * bend[name] + t**2 * b[name]",
          "(1 - 2 * t) * a[name] + 2 * t * bend[name] if t <= 0.5 else (2 - 2 * t) * bend[name] + (2 * t - 1) * b[name]", ("test_curve",)),
    Wrong("uphill", "bend_step", "bend[name].detach() - lr", "bend[name].detach() + lr", ("test_step", "test_step_l2", "test_train"), True),
    Wrong("the L2 term of the bend", "bend_step", "norm2(point)", "norm2(free)", ("test_step_l2",), True),
    Wrong("the L2 term without its half", "bend_step", "decay / 2", "decay", ("test_step_l2",)),
    Wrong("the gradient of the network, as if it were the bend's", "bend_step", "torch.autograd.grad(loss, list(free.values()))",
          "[g / (2 * t * (1 - t) + 1e-9) for g in torch.autograd.grad(loss, list(free.values()))]", ("test_step", "test_step_l2")),
    Wrong("the bend is written into", "bend_step", "return {name: bend[name].detach() - lr * g for name, g in zip(bend, gradients)}",
          "for name, g in zip(bend, gradients):\n        bend[name] -= lr * g\n    return bend", ("test_step", "test_step_l2"), True),
    Wrong("the bend never leaves the segment", "train_bend", "range(steps)", "range(0)", ("test_train",)),
    Wrong("down in the whole cycle", "schedule", "if t <= 0.5 else (2 - 2 * t) * low + (2 * t - 1) * high", "if t <= 0.5 else low", ("test_rate",)),
    Wrong("one iteration late", "schedule", "t = ((i - 1) % c + 1) / c", "t = ((i - 2) % c + 1) / c", ("test_rate",), True),
    Wrong("the last iteration does not count", "schedule", "range(1, iterations + 1)", "range(1, iterations)", ("test_members",)),
    Wrong("an odd cycle is accepted", "schedule", "if c % 2:", "if False:", ("test_members",)),
    Wrong("members at the end of a cycle", "schedule", "i % c == c // 2", "i % c == 0", ("test_members",), True),
    Wrong("the stale statistics of c", "fresh_logits", "statistics = {", "statistics = statistics_of_c if True else {", ("test_fresh",), True),
    Wrong("statistics of the images asked for", "fresh_logits", "linear(train_images.flatten(1)", "linear(some.flatten(1)", ("test_fresh",)),
    Wrong("statistics kept in the network", "fresh_logits", "return functional_call(normed, {**w, **statistics}, (some,))",
          "for name, value in statistics.items():\n        normed.get_buffer(name).copy_(value)\n    return functional_call(normed, w, (some,))", ("test_fresh",)),
)

HEADS = (
    Wrong("the transpose in the place of the pseudo-inverse", "adjusted_head", "torch.linalg.pinv(f1.double())", "f1.double().T", ("test_head",), True),
    Wrong("a plain inverse, which dead features break", "adjusted_head", "torch.linalg.pinv(f1.double())", "f1.double().T @ torch.linalg.inv(f1.double() @ f1.double().T)", ("test_head",)),
    Wrong("its own head, whatever the backbone", "adjusted_head", "return wk.double() @ fk.double() @ torch.linalg.pinv(f1.double())", "return wk.double()", ("test_head",)),
    Wrong("the logits are averaged", "averages", "logits.softmax(-1).mean(0)", "logits.mean(0).softmax(-1)", ("test_ensemble",)),
    Wrong("softmax over the images", "averages", "logits.softmax(-1)", "logits.softmax(1)", ("test_ensemble",), True),
    Wrong("sums of the biases", "averages", "torch.stack(list(biases)).mean(0)", "torch.stack(list(biases)).sum(0)", ("test_one_head",)),
    Wrong("a backbone for each member", "costs", "backbone + m * head, m", "m * backbone + head, m", ("test_costs",)),
    Wrong("the ends exchanged", "line_gradients", "(1 - t) * x for name, x in g.items()}, {name: t * x", "t * x for name, x in g.items()}, {name: (1 - t) * x", ("test_gradients",)),
    Wrong("one half each", "line_gradients", "(1 - t) * x for name, x in g.items()}, {name: t * x", "x / 2 for name, x in g.items()}, {name: x / 2", ("test_gradients",)),
    Wrong("g is written into", "line_gradients", "{name: t * x for", "{name: x.mul_(t) for", ("test_gradients",)),
    Wrong("normalisation is counted", "cosine_squared", ' if not name.startswith("norm")', "", ("test_cosine",)),
    Wrong("the mean over the tensors", "cosine_squared", "",
          "def cosine_squared(w1, w2):\n    names = [name for name in w1 if not name.startswith('norm')]\n"
          "    return sum(torch.cosine_similarity(w1[k].flatten(), w2[k].flatten(), dim=0) ** 2 for k in names) / len(names)", ("test_cosine",)),
    Wrong("without the square", "cosine_squared", "(u @ v) ** 2 / ((u @ u) * (v @ v))", "(u @ v) / ((u @ u) * (v @ v)).sqrt()", ("test_cosine",)),
    Wrong("matched by position", "cosine_squared", "sorted(w1) if", "w if", ("test_cosine",)),
    Wrong("the whole gradient for both ends", "line_step", "gradients = torch.autograd.grad(loss, [x for w in ends for x in w.values()])",
          "gradients = [2 * g for g in torch.autograd.grad(loss, [x for w in ends for x in w.values()])]", ("test_line_step",)),
    Wrong("beta is forgotten", "line_step", " + beta * (u @ v) ** 2 / ((u @ u) * (v @ v))", " + 0 * (u @ v)", ("test_line_beta",), True),
    Wrong("the cosine, not its square", "line_step", "(u @ v) ** 2 / ((u @ u) * (v @ v))", "(u @ v) / ((u @ u) * (v @ v)).sqrt()", ("test_line_beta",)),
)

PREDICT = (
    Wrong("bins that are closed on the left", "calibration", "(confidence > m / bins) & (confidence <= (m + 1) / bins)", "(confidence >= m / bins) & (confidence < (m + 1) / bins)", ("test_calibration",), True),
    Wrong("the last bin is left out", "calibration", "range(bins)", "range(bins - 1)", ("test_calibration",), True),
    Wrong("always 20 bins", "calibration", "right, found", "bins = 20\n    right, found", ("test_calibration",)),
    Wrong("bins of equal weight", "calibration", "inside.double().mean() *", "1 / bins *", ("test_calibration",), True),
    Wrong("no absolute value", "calibration", ".mean()).abs())", ".mean()))", ("test_calibration",), True),
    Wrong("no bins at all", "calibration", "range(bins)", "[0]", ("test_calibration",), True),
    Wrong("each image with a probability: not exactly this many", "redraw", "torch.randperm(len(labels), generator=generator)[:count]",
          "(torch.rand(len(labels), generator=generator) < fraction).nonzero()[:, 0]\n    count = len(chosen)", ("test_redraw",)),
    Wrong("some chosen twice", "redraw", "torch.randperm(len(labels), generator=generator)[:count]", "torch.randint(len(labels), (count,), generator=generator)", ("test_redraw",)),
    Wrong("always a wrong label", "redraw", "torch.randint(classes, (count,), generator=generator, dtype=labels.dtype)",
          "(labels[chosen] + torch.randint(1, classes, (count,), generator=generator)) % classes", ("test_redraw",)),
    Wrong("the labels are written into", "redraw", "labels.clone()", "labels", ("test_redraw",)),
    Wrong("the generator is not used", "redraw", "torch.randint(classes, (count,), generator=generator, dtype=labels.dtype)", "torch.randint(classes, (count,), dtype=labels.dtype)", ("test_redraw",)),
    Wrong("corners that are not centred", "price", "corners - corners.mean(0)", "corners", ("test_price",)),
    Wrong("m for m + 1", "price", "2 * m * (m + 1)", "3 * m * m", ("test_price",)),
    Wrong("a method named twice", "prediction", '"mean of two"]', '"usual"]', ("test_prediction",), True),
    Wrong("the training images", "measure", "ll.predict(net, weights, task)", "ll.predict(net, weights, task, 'train')[:len(task.test.labels)]", ("test_measure",), True),
    Wrong("per cent", "measure", '{"accuracy": float(choice.double().mean())', '{"accuracy": 100 * float(choice.double().mean())', ("test_measure",)),
    Wrong("the task of the page, whatever is handed in", "measure", "logits = ", "task = clean\n    logits = ", ("test_measure",)),
    Wrong("a tie beats nobody", "worth", "(x, y) != tuple(one)", "x > one[0] and y < one[1]", ("test_worth",)),
    Wrong("equals beat each other", "worth", " and (x, y) != tuple(one)", "", ("test_worth",), True),
    Wrong("the best first", "worth", "key=lambda name: methods[name][1]", "key=lambda name: -methods[name][0]", ("test_worth",), True),
    Wrong("deviations added up", "verdict", "(paper[1] ** 2 + run[1] ** 2) ** 0.5", "(paper[1] + run[1])", ("test_verdict",)),
    Wrong("no absolute value", "verdict", "abs(paper[0] - run[0])", "paper[0] - run[0]", ("test_verdict",)),
    Wrong("0 is taken for None", "verdict", "paper[1] is None or run[1] is None", "not paper[1] or not run[1]", ("test_verdict",)),
)

PLANTED: dict[str, tuple[Wrong, ...]] = {
    "01_clouds": CLOUDS, "02_maps_and_swaps": SWAPS, "03_next_layer": NEXT_LAYER, "04_bends_and_cycles": BENDS, "05_heads_and_lines": HEADS, "06_predict_then_measure": PREDICT}
