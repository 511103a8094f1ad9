  const tip = document.getElementById("tip");
  const hideTip = () => { tip.hidden = true; };
  const showTip = event => {
    const mark = event.target.closest?.("figure .role-mark [aria-label]");
    if (!mark) return hideTip();
    tip.textContent = mark.getAttribute("aria-label");
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, innerWidth - box.width - 8);
    const above = event.clientY - box.height - 12;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above < 8 ? event.clientY + 16 : above}px`;
  };
  document.addEventListener("pointermove", showTip);
  document.addEventListener("click", showTip);
  document.addEventListener("scroll", hideTip, true);
