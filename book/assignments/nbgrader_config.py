"""The course for nbgrader: run its commands in this folder."""

from time import monotonic

from nbformat import from_dict
from nbgrader.api import Gradebook
from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, DeduplicateIds, OverwriteCells, OverwriteKernelspec


class RestoreCells(OverwriteCells):
    """Put back every cell of the assignment that a student deleted.

    nbgrader's own `add_missing_cells` does this for tests alone, and fails where the cell in front of a test is gone, too.
    """

    def preprocess(self, nb, resources):
        """Return the notebook with its missing cells, blank where they were to be filled in."""
        about = resources["nbgrader"]
        with Gradebook(about["db_url"]) as gradebook:
            notebook = gradebook.find_notebook(about["notebook"], about["assignment"])
            points = {cell.name: cell.max_score for cell in notebook.grade_cells}
            solutions = {cell.name for cell in notebook.solution_cells}
            place = 0
            for source in notebook.source_cells:
                names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in nb.cells]
                if source.name not in names:
                    nb.cells.insert(place, self.restored(source, points.get(source.name), source.name in solutions))
                    names.insert(place, source.name)
                place = names.index(source.name) + 1
        return nb, resources

    def restored(self, source, points, solution):
        """Return the cell as it was handed out."""
        cell = from_dict(self.missing_cell_transform(source, points or 0, is_solution=solution))
        cell.metadata.nbgrader.update(grade=points is not None, locked=source.locked)
        if points is None:
            del cell.metadata.nbgrader["points"]
        cell.source = source.source
        return cell


class Patience:
    """Seconds that a cell may take, and all cells of a notebook together: for those that loop for ever."""

    cell, notebook, least, end = 60, 180, 5, 0.0

    @classmethod
    def start(cls, **_):
        """Begin with a notebook."""
        cls.end = monotonic() + cls.notebook  # of the class: a configuration is copied

    @classmethod
    def left(cls, _):
        """Return the seconds that the next cell may take."""
        return round(max(cls.least, min(cls.cell, cls.end - monotonic())))


c = get_config()  # noqa: F821 (nbgrader defines it)
c.CourseDirectory.course_id = "lossland"
c.ClearSolutions.code_stub = {"python": "# your code here\nraise RuntimeError('this cell is still empty')"}
c.ClearSolutions.text_stub = "*Your answer here.*"
# Files as students name them, ada_01_clouds.ipynb, or as Moodle does.
c.FileNameCollectorPlugin.named_regexp = (
    r"(?:.*/)?(?P<student_id>[^/_]+)_(?:\d+_assignsubmission_file[_/])?(?P<file_id>\d\d_\w+\.ipynb)$")
c.Autograde.sanitize_preprocessors = [ClearOutput, DeduplicateIds, OverwriteKernelspec, RestoreCells, OverwriteCells, CheckCellMetadata]
c.Execute.on_notebook_start = Patience.start
c.Execute.timeout_func = Patience.left
# A cell that cannot be interrupted, or prints without end, must not cost the points of the cells before it.
c.Execute.raise_on_iopub_timeout = False
