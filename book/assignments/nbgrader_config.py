"""The course for nbgrader: run its commands in this folder."""

from time import monotonic

from nbclient.exceptions import DeadKernelError
from nbformat import from_dict
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde
from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, DeduplicateIds, Execute, OverwriteCells, OverwriteKernelspec


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
    def start(cls):
        """Begin with a notebook."""
        cls.end = monotonic() + cls.notebook  # of the class: a configuration is copied

    @classmethod
    def left(cls, _):
        """Return the seconds that the next cell may take."""
        return round(max(cls.least, min(cls.cell, cls.end - monotonic())))


class ExecuteToTheEnd(Execute):
    """Run a notebook; where a cell ends the kernel, with `exit()` or for want of memory, run it again without this cell."""

    def preprocess(self, nb, resources, km=None):
        """Return the notebook with outputs, errors in the cells that ended a kernel."""
        Patience.start()
        self.deadly = set()
        while True:
            try:
                return super().preprocess(nb, resources, km)
            except DeadKernelError:
                self.deadly.add(self.here)

    def preprocess_cell(self, cell, resources, index):
        """Run a cell that has not ended a kernel before."""
        self.here = index
        if index not in self.deadly:
            return super().preprocess_cell(cell, resources, index)
        what = "this cell ended the kernel; the others were run without it"
        cell.outputs = [from_dict({"output_type": "error", "ename": "DeadKernelError", "evalue": what, "traceback": [what]})]
        return cell, resources

    def on_cell_executed(self, **about):
        """Take a call of `exit()` for what it is: the kernel ends a little later, perhaps in another cell."""
        super().on_cell_executed(**about)
        if any(wish["source"] == "ask_exit" for wish in about["execute_reply"]["content"].get("payload", [])):
            raise DeadKernelError("exit")


c = get_config()  # noqa: F821 (nbgrader defines it)
c.CourseDirectory.course_id = "lossland"
c.ClearSolutions.code_stub = {"python": "# your code here\nraise RuntimeError('this cell is still empty')"}
c.ClearSolutions.text_stub = "*Your answer here.*"
# Files as students name them, ada_01_clouds.ipynb, as browsers and JupyterLab rename them, "... (1)" and "...-Copy1", or as Moodle does.
c.FileNameCollectorPlugin.named_regexp = (
    r"(?:.*/)?(?P<student_id>[^/]+?)_(?:\d+_assignsubmission_file_?/?)?(?P<file_id>\d\d_(?!\d\d_)\w+?)(?: ?\(\d+\)|-Copy\d+)?\.ipynb$")
c.Autograde.sanitize_preprocessors = [ClearOutput, DeduplicateIds, OverwriteKernelspec, RestoreCells, OverwriteCells, CheckCellMetadata]
c.Autograde.autograde_preprocessors = [
    ExecuteToTheEnd if step is Execute else step for step in Autograde.class_traits()["autograde_preprocessors"].default()]
c.Execute.timeout_func = Patience.left
# A cell that cannot be interrupted, or prints without end, must not cost the points of the cells before it.
c.Execute.raise_on_iopub_timeout = False
