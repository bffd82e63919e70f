// Small things that several panels use.

import { type SubmitEvent, type KeyboardEvent, useEffect, useRef, useState } from "react";
import { keepToken, member, type Problem, token } from "./api.ts";

export function Copy({ text, label }: { text: string; label: string }) {
  const [copied, setCopied] = useState(false);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async (): Promise<void> => {
    await navigator.clipboard.writeText(text).catch(() => selectAndCopy(text));
    setCopied(true);
    timer.current = setTimeout(() => setCopied(false), 1500);
  };
  return (
    <button className="copy" onClick={() => void copy()} aria-label={`Copy ${label}`}>
      {copied ? "copied" : "copy"}
    </button>
  );
}

/** For pages that are not served over https, where there is no clipboard. */
function selectAndCopy(text: string): void {
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  // eslint-disable-next-line @typescript-eslint/no-deprecated -- there is nothing else on such pages
  document.execCommand("copy");
  area.remove();
}

/** What a field holds of the form that is submitted. */
export function fieldOf(event: SubmitEvent<HTMLFormElement>, name: string): string {
  const value = new FormData(event.currentTarget).get(name);
  return typeof value === "string" ? value : "";
}

/** Why something is not shown; where a token would help, a place to give one. */
export function Refusal({
  problem,
  again,
  what,
}: {
  problem: Problem;
  again: () => void;
  what: string;
}) {
  if (problem.status !== 401)
    return (
      <p className="notice" role="alert">
        {`There is no ${what} to show: ${problem.message} (${problem.code}) `}
        <button onClick={again}>Try again</button>
      </p>
    );
  return <TokenForm again={again} what={what} />;
}

export function TokenForm({ again, what }: { again: () => void; what: string }) {
  const [trouble, setTrouble] = useState(token() || member() ? "The token was refused." : "");
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    if (!keepToken(fieldOf(event, "token")))
      return setTrouble("A token has letters, digits and signs only.");
    setTrouble("asking…");
    again();
  };
  return (
    <form className="token" onSubmit={submit}>
      <label>
        {`This hub shows ${what} to those who have a token.`}
        <input name="token" type="password" autoComplete="off" required />
      </label>
      <button>Use token</button>
      <p role="status">{trouble}</p>
    </form>
  );
}

export function Tabs<Name extends string>({
  names,
  chosen,
  choose,
}: {
  names: readonly Name[];
  chosen: Name;
  choose: (name: Name) => void;
}) {
  const step = (event: KeyboardEvent): void => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    const next = names[(names.indexOf(chosen) + by + names.length) % names.length] as Name;
    choose(next);
    event.currentTarget.querySelector<HTMLElement>(`[data-tab="${next}"]`)?.focus();
  };
  return (
    <div className="tabs" role="tablist" onKeyDown={step}>
      {names.map((name) => (
        <button
          key={name}
          role="tab"
          data-tab={name}
          id={`tab-${name}`}
          aria-selected={name === chosen}
          aria-controls="panel"
          tabIndex={name === chosen ? 0 : -1}
          onClick={() => choose(name)}
        >
          {name}
        </button>
      ))}
    </div>
  );
}
