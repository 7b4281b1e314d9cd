"""interactive(): a figure that everybody sees, and sliders for those with a live kernel.

Invariant: the cell's output is the static figure, its alt line and one line naming the controls,
whether or not widgets work here; so GitHub, nbval and screen readers all get the same facts.
Used by every notebook with a slider.
"""

import importlib.util
from collections.abc import Callable
from html import escape
from typing import Any

from matplotlib.figure import Figure

from plamo_ref.teaching.figures import png, show

Control = bool | list[Any] | tuple[float, float, float] | tuple[float, float, float, float]
Draw = Callable[..., tuple[Figure, str]]


def interactive(draw: Draw, **controls: Control) -> None:
    """Show `draw` at the default setting and, with ipywidgets and a kernel, controls to change it.

    Args:
        draw: called with one keyword for each control; returns a figure and its one-line alt text.
            It prints nothing.
        controls: `(low, high, default)` or `(low, high, default, step)`: a slider, of integers when
            all are; a list: a choice, its first entry the default; a bool: a check box.

    The moved version is drawn into an image widget below the static figure, never printed.

    Raises:
        ValueError: a control that is none of these, or whose default is out of its range.
    """
    for name, control in controls.items():
        _check(name, control)
    show(*draw(**{name: default_of(control) for name, control in controls.items()}))
    described = ", ".join(f"{name} {_describe(c)}" for name, c in controls.items())
    bundle: dict[str, Any] = {"text/plain": f"[controls, with a live kernel] {described}"}
    if widgets_can_live():
        view: dict[str, Any] = {"version_major": 2, "version_minor": 0}
        view["model_id"] = panel(draw, **controls).model_id
        bundle["application/vnd.jupyter.widget-view+json"] = view
    from IPython.display import display  # here: who only times kernels needs none

    display(bundle, raw=True)


def default_of(control: Control) -> Any:
    """The setting that the static figure shows."""
    if isinstance(control, bool):
        return control
    return control[0] if isinstance(control, list) else control[2]


def _check(name: str, control: Control) -> None:
    if isinstance(control, bool) or (isinstance(control, list) and control):
        return
    if not isinstance(control, tuple) or len(control) not in (3, 4):
        raise ValueError(
            f"interactive: {name}={control!r} must be (low, high, default[, step]), a list, a bool"
        )
    low, high, default = control[:3]
    if not low <= default <= high:
        raise ValueError(f"interactive: {name}: the default {default} is not in {low} to {high}")


def _describe(control: Control) -> str:
    if isinstance(control, bool):
        return "on or off"
    if isinstance(control, list):
        return "one of " + " ".join(map(str, control))
    return f"{control[0]} to {control[1]}"


def widgets_can_live() -> bool:
    """Whether a kernel runs this code and ipywidgets is installed."""
    from IPython.core.getipython import get_ipython

    live = getattr(get_ipython(), "kernel", None) is not None
    return live and importlib.util.find_spec("ipywidgets") is not None


def panel(draw: Draw, **controls: Control) -> Any:
    """The ipywidgets box of controls; image and caption below them stay empty until one moves."""
    import ipywidgets as widgets  # here, because notebooks also work without it

    inputs = {name: _widget(widgets, name, control) for name, control in controls.items()}
    # An Image, not an Output: Output's content would land in the cell under nbval and nbconvert.
    # At its start, or the box stretches it: the moved figure is to be as large as the static one.
    layout = {"display": "none", "max_width": "100%", "align_self": "flex-start"}
    image = widgets.Image(format="png", layout=layout)
    caption = widgets.HTML()

    def redraw(_: Any) -> None:
        try:
            fig, alt = draw(**{name: widget.value for name, widget in inputs.items()})
        except Exception as error:  # else nobody would see it: a callback has no cell
            problem = f"✗ cannot be drawn again: {type(error).__name__}: {error}"
            caption.value = escape(f"{problem}. Run the cells above once more")
            return
        image.value, image.alt = png(fig), alt
        caption.value = escape(alt)
        image.layout.display = ""

    for widget in inputs.values():
        widget.observe(redraw, names="value")
    return widgets.VBox([*inputs.values(), image, caption])


def _widget(widgets: Any, name: str, control: Control) -> Any:
    text: dict[str, Any] = {"description": name, "style": {"description_width": "initial"}}
    if isinstance(control, bool):
        return widgets.Checkbox(value=control, **text)
    if isinstance(control, list):
        return widgets.Dropdown(options=control, value=control[0], **text)
    low, high, default, *step = control
    whole = all(isinstance(v, int) for v in control)
    slider = widgets.IntSlider if whole else widgets.FloatSlider
    size = step[0] if step else (1 if whole else (high - low) / 20)
    # Redrawing while dragging would queue up figures faster than they can be drawn.
    return slider(value=default, min=low, max=high, step=size, continuous_update=False, **text)
