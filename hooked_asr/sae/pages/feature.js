// A line moves over the spectrogram while its sound is played; one sound at a time.
for (const audio of document.querySelectorAll("audio")) {
  const line = audio.closest("figure").querySelector(".now");
  const move = () => {
    if (line && audio.duration) {
      const x = (audio.currentTime / audio.duration) * line.ownerSVGElement.viewBox.baseVal.width;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
    if (!audio.paused) requestAnimationFrame(move);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    move();
  });
}
