// The viewer of a case. Stands in one module with NiiVue, whose names it uses: Niivue, NVImage, SLICE_TYPE …

const caseData = JSON.parse(document.getElementById("viewer-data").textContent);
const page = document.documentElement;
const control = (id) => document.getElementById(id);
const PLANES = ["sagittal", "coronal", "axial"]; // across x, y, z, which NiiVue counts to the right, front and head
const LAYERS = ["image", "labels", "uncertainty"];
const VIEWS = {
  all: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  render: SLICE_TYPE.RENDER,
};
const UNCERTAINTY = {
  R: [0, 35, 87, 188, 249, 252],
  G: [0, 6, 16, 55, 142, 255],
  B: [4, 46, 110, 84, 9, 164],
  A: [0, 0, 60, 130, 190, 255], // below 0.1 nothing is drawn, or the image could not be seen
  I: [0, 25, 64, 128, 191, 255],
};

class CaseViewer {
  async open() {
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1],
      fontColor: [0.9, 0.9, 0.9, 1],
      crosshairColor: [0.35, 0.8, 1, 1],
      crosshairWidthUnit: "mm",
      show3Dcrosshair: true,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      dragAndDropEnabled: false,
      dragMode: DRAG_MODE.pan,
      loadingText: "",
      logLevel: "error",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
    });
    await this.niivue.attachToCanvas(control("canvas"));
    this.niivue.addColormap("case-uncertainty", UNCERTAINTY);
    for (const name of LAYERS) {
      const volume = await NVImage.loadFromBase64({ base64: caseData[name], name: `${name}.nii.gz` });
      this.prepare(name, volume);
      this.niivue.addVolume(volume);
    }
    this.niivue.onLocationChange = (where) => this.tell(where);
    this.showLayers();
    this.niivue.setSliceType(VIEWS.all);
    this.goTo();
  }

  prepare(name, volume) {
    if (name === "image") {
      [volume.cal_min, volume.cal_max] = caseData.window;
    } else if (name === "labels") {
      volume.setColormapLabel(labelColours());
    } else {
      volume.colormap = "case-uncertainty";
      [volume.cal_min, volume.cal_max] = [0, 1];
    }
  }

  showLayers() {
    const strength = { image: 1, labels: number("strength-labels"), uncertainty: number("strength-uncertainty") };
    LAYERS.forEach((name, index) => {
      this.niivue.volumes[index].opacity = control(`layer-${name}`).checked ? strength[name] : 0;
    });
    this.niivue.updateGLVolume();
  }

  showWindow() {
    const [low, high] = control("window").value.split(",").map(Number);
    Object.assign(this.niivue.volumes[0], { cal_min: low, cal_max: high });
    this.niivue.updateGLVolume();
  }

  showView() {
    this.niivue.setSliceType(VIEWS[document.querySelector("input[name=view]:checked").value]);
  }

  showCrosshair() {
    const shown = control("crosshair").checked;
    this.niivue.opts.show3Dcrosshair = shown;
    this.niivue.setCrosshairWidth(shown ? 1 : 0);
  }

  goTo() {
    this.niivue.scene.crosshairPos = this.niivue.vox2frac(PLANES.map((name) => number(name) - 1));
    this.niivue.createOnLocationChange();
    this.niivue.drawScene();
  }

  // Called whenever the viewer goes somewhere, by its own mouse too.
  tell(where) {
    PLANES.forEach((name, axis) => {
      const slice = Math.round(where.vox[axis]) + 1;
      const text = `${slice} of ${caseData.shape[axis]}`;
      control(name).value = slice;
      control(name).setAttribute("aria-valuetext", text);
      control(`${name}-at`).value = text;
    });
    const [image, label, uncertainty] = where.values.map((item) => item.value);
    const segment = caseData.classes.find((item) => item.label === Math.round(label));
    const value = caseData.isCt ? `${Math.round(image)} HU` : `value ${image.toPrecision(4)}`;
    control("here").value =
      `At the cross-hair: ${value}, ${segment ? segment.name : "no segment"}, uncertainty ${uncertainty.toFixed(2)}`;
  }
}

function number(id) {
  return Number(control(id).value);
}

function labelColours() {
  const classes = [{ label: 0, name: "", colour: [0, 0, 0] }, ...caseData.classes];
  return {
    R: classes.map((item) => item.colour[0]),
    G: classes.map((item) => item.colour[1]),
    B: classes.map((item) => item.colour[2]),
    A: classes.map((item) => (item.label ? 255 : 0)),
    I: classes.map((item) => item.label),
    labels: classes.map((item) => item.name),
  };
}

function listen(viewer) {
  const handlers = {
    "layer-image": "showLayers",
    "layer-labels": "showLayers",
    "layer-uncertainty": "showLayers",
    "strength-labels": "showLayers",
    "strength-uncertainty": "showLayers",
    axial: "goTo",
    coronal: "goTo",
    sagittal: "goTo",
    crosshair: "showCrosshair",
    window: "showWindow",
  };
  for (const [id, handler] of Object.entries(handlers)) {
    control(id)?.addEventListener("input", () => viewer[handler]());
  }
  document.querySelectorAll("input[name=view]").forEach((item) => {
    item.addEventListener("input", () => viewer.showView());
  });
  control("controls").addEventListener("submit", (event) => event.preventDefault());
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    return "unavailable";
  }
  page.dataset.viewer = "starting"; // now the canvas has a size
  control("controls").reset(); // browsers keep what was set before a reload
  const viewer = new CaseViewer();
  try {
    await viewer.open();
  } catch (error) {
    console.error(error);
    return "unavailable";
  }
  listen(viewer);
  return "ready";
}

start().then((state) => {
  page.dataset.viewer = state;
});
