"""PCA on shared axes: coordinates of known states, and a valid picture."""

import numpy as np
import pytest

from dcr_ds.diagnose.pca import draw_pca, project
from dcr_ds.errors import UserError

LABELS = np.array([0, 1] * 10)


def states(shift, seed=0):
    rng = np.random.default_rng(seed)
    h = 0.1 * rng.standard_normal((20, 12))
    h[:, 0] += 1
    h[:, 4] += shift * (2 * LABELS - 1)
    return h


def test_pca_shows_the_axis_that_refine_adds():
    projection = project(states(0), states(1))
    before, after = projection.before[:, 0], projection.after[:, 0]
    assert abs(after[LABELS == 1].mean() - after[LABELS == 0].mean()) > 10 * abs(
        before[LABELS == 1].mean() - before[LABELS == 0].mean()
    )
    assert projection.explained[0] > 0.5 > projection.explained[1] > 0
    assert projection.explained_after > projection.explained_before


def test_distances_between_all_states_are_kept_where_two_axes_suffice():
    rng = np.random.default_rng(1)
    plane = np.linalg.qr(rng.standard_normal((9, 2)))[0]
    before, after = (rng.standard_normal((8, 2)) @ plane.T for _ in range(2))
    projection = project(before, after)
    assert projection.explained.sum() == pytest.approx(1)
    unit = [h / np.linalg.norm(h, axis=1, keepdims=True) for h in (before, after)]
    expected = np.linalg.norm(unit[0][:, None] - unit[1][None], axis=2)
    distances = np.linalg.norm(projection.before[:, None] - projection.after[None], axis=2)
    np.testing.assert_allclose(distances, expected, atol=1e-12)


def test_coordinates_do_not_depend_on_the_lengths_of_states():
    scale = np.random.default_rng(2).uniform(0.1, 10, (20, 1))
    np.testing.assert_allclose(
        project(states(0) * scale, states(1)).before, project(states(0), states(1)).before, atol=1e-12
    )


def test_identical_states_can_be_plotted(tmp_path):
    collapsed = np.ones((20, 4))
    projection = project(collapsed, collapsed)
    assert not projection.before.any() and not projection.explained.any()
    draw_pca(projection, LABELS, tmp_path / "pca.png", ("before", "after"))


def test_the_picture_is_written(tmp_path):
    from matplotlib.image import imread

    file = tmp_path / "new" / "pca.png"
    draw_pca(project(states(0), states(1)), LABELS, file, ("before", "after"))
    picture = imread(file)
    assert picture.shape[:2] == (720, 1280)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10


def test_states_that_cannot_be_projected():
    with pytest.raises(UserError, match="2 held-out prompts"):
        project(np.ones((2, 4)), np.ones((2, 4)))
    with pytest.raises(UserError, match="not finite"):
        project(np.full((4, 4), np.nan), np.ones((4, 4)))
