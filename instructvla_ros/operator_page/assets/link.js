// The connection to web_node. Knows for each message a bound of its age without comparing clocks: the server repeats
// the newest time of our clock it had heard when the message left, so the message is at most that old.

export class Link {
  constructor(onMessage, onChange) {
    this.onMessage = onMessage;
    this.onChange = onChange;
    this.open = false;
    this.heard = -Infinity; // our clock [ms]
    this.waiting = []; // a STOP that found no connection goes as soon as there is one
    this.connect();
  }

  connect() {
    const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
    this.begun = performance.now();
    this.socket = new WebSocket(`${scheme}//${location.host}/ws`);
    this.socket.binaryType = 'arraybuffer';
    this.socket.onopen = () => {
      this.open = true;
      for (const wish of this.waiting.splice(0)) this.socket.send(JSON.stringify(wish));
      this.onChange();
    };
    this.socket.onmessage = (event) => this.receive(event.data);
    this.socket.onclose = () => {
      this.open = false;
      this.onChange();
      setTimeout(() => this.connect(), 500);
    };
  }

  receive(data) {
    this.heard = performance.now();
    let head = data, body = null;
    if (typeof data !== 'string') {
      const length = new DataView(data).getUint32(0);
      head = new TextDecoder().decode(new Uint8Array(data, 4, length));
      body = new Blob([new Uint8Array(data, 4 + length)], { type: 'image/jpeg' });
    }
    this.onMessage(JSON.parse(head), body);
  }

  // Time of our clock [ms] before which something of this age [s] in a message cannot have happened later.
  born(message, age) {
    return (message.echo > 0 ? message.echo : this.begun) - 1000 * (age + message.held);
  }

  // Something was missed: a new connection begins with everything.
  again() {
    this.socket.close();
  }

  ack(slot) {
    this.say({ ack: slot, at: performance.now() });
  }

  // Whether it was sent.
  say(wish) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(wish));
    return true;
  }
}
