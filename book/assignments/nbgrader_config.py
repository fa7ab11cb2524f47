"""The course for nbgrader: run its commands in this folder."""

from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, DeduplicateIds, OverwriteCells, OverwriteKernelspec

SECONDS = 60  # that one cell may take when a notebook is marked


class RestoreCells(OverwriteCells):
    """Put back every cell of the assignment that a student deleted: nbgrader alone restores tests behind a cell that is left."""

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
        cell = self.missing_cell_transform(source, points or 0, is_solution=solution)
        cell.source = source.source
        cell.metadata.nbgrader.update(grade=points is not None, solution=solution, locked=source.locked)
        if points is None:
            del cell.metadata.nbgrader["points"]
        return NotebookNode(cell)


c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "lossland"
c.Execute.timeout = SECONDS
c.ClearSolutions.code_stub = {"python": "# your code here\nraise RuntimeError('this cell is still empty')"}
c.ClearSolutions.text_stub = "*Your answer here.*"
c.Autograde.sanitize_preprocessors = [ClearOutput, DeduplicateIds, OverwriteKernelspec, RestoreCells, OverwriteCells, CheckCellMetadata]
