// Signing in: with a token that is pasted, or by the code in the address that `kawai ui` opens.
import { session, signIn } from "./api.js";
import { html, useRef, useState } from "./html.js";
import { Trouble } from "./parts.js";
import { useStore } from "./resources.js";

/** The form; the view that was asked for stays in the address, and is there once somebody is signed in. */
export function SignIn() {
  const { over } = useStore(session);
  const [problem, setProblem] = useState(null);
  const [works, setWorks] = useState(false);
  const field = useRef(null);
  async function submit(event) {
    event.preventDefault();
    setProblem(null);
    setWorks(true);
    try {
      await signIn({ token: field.current.value });
    } catch (refused) {
      setProblem(refused);
      setWorks(false);
      field.current.select();
    }
  }
  return html`
    <main id="content" class="signin">
      <form onSubmit=${submit}>
        <h1 tabindex="-1">Sign in to kawai</h1>
        ${over && html`<p role="status">The session is over. Sign in, and this view is back.</p>`}
        <p>On the machine that runs it, <code>kawai ui</code> opens this page signed in. Elsewhere paste a token;
          <code>kawai tokens create</code> makes one.</p>
        <label>Token
          <input ref=${field} type="password" name="token" autocomplete="current-password" required autofocus
            spellcheck="false" aria-describedby="signin-trouble" />
        </label>
        <div id="signin-trouble"><${Trouble} problem=${problem} /></div>
        <button type="submit" aria-busy=${works} disabled=${works}>${works ? "Signing in …" : "Sign in"}</button>
      </form>
    </main>`;
}
