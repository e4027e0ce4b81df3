// Pictures from files and from the camera.

/** The picture in a file, turned by its EXIF orientation, without colour conversion. */
export async function fromFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`${file.name || "the file"} is no image that this browser can read`);
  }
  return pixels(bitmap, bitmap.width, bitmap.height);
}

/** The current frame of a video. */
export function fromVideo(video) {
  return pixels(video, video.videoWidth, video.videoHeight);
}

function pixels(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height);
}

/** Show the user-facing camera in a video element. */
export async function startCamera(video) {
  if (!navigator.mediaDevices) throw new Error("browsers give the camera only to pages over https, or of this machine");
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: { ideal: 1280 } } });
  await video.play();
}

export function stopCamera(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}
